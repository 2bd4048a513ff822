//! Tensors on the host as the thread that moves rows sees them: bytes that it reads, and bytes that it writes.

#![allow(unsafe_code, reason = "the bytes of tensors that this module made or holds")]

use tch::{Device, Kind, Tensor};

/// Rows that leave. Nobody writes them while they are under way: slot values and gradients are never changed in place.
#[derive(Debug)]
pub(super) struct Sent(Tensor);

/// Room for rows that arrive; nobody else has it until they have.
#[derive(Debug)]
pub(super) struct Received(Tensor);

impl Sent {
    /// `tensor`, copied only if it is not contiguous on the host.
    pub(super) fn new(tensor: &Tensor) -> Sent {
        Sent(tensor.detach().to_device(Device::Cpu).contiguous())
    }
}

impl Received {
    /// Room for a tensor of this shape; contents arbitrary.
    pub(super) fn new(shape: &[i64], kind: Kind) -> Received {
        Received(Tensor::empty(shape, (kind, Device::Cpu)))
    }

    /// What arrived, on `device`.
    pub(super) fn into_tensor(self, device: Device) -> Tensor {
        self.0.to_device(device)
    }
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        match bytes(&self.0) {
            0 => &[],
            // SAFETY: contiguous host memory of that many bytes, held by `self` and written by nobody (see the type).
            len => unsafe { std::slice::from_raw_parts(self.0.data_ptr().cast(), len) },
        }
    }
}

impl AsMut<[u8]> for Received {
    fn as_mut(&mut self) -> &mut [u8] {
        match bytes(&self.0) {
            0 => &mut [],
            // SAFETY: contiguous host memory of that many bytes; `new` made it, and nobody else holds it.
            len => unsafe { std::slice::from_raw_parts_mut(self.0.data_ptr().cast(), len) },
        }
    }
}
