//! What a person types and sees, and the shim under `train`: drives the built `lampyris` and the shim with a fake rank
//! program. Builds nothing and needs no libtorch.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod checkpoint;
#[cfg(test)]
mod desk;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod help;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod hugging_face;
#[cfg(test)]
mod plan;
#[cfg(test)]
mod quickstart;
mod repair;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod shim;
#[cfg(test)]
mod slurm;
#[cfg(test)]
mod standing;
#[cfg(test)]
mod start;
#[cfg(test)]
mod suspend;
#[cfg(test)]
mod train;
