//! The C interface of the shim. All `unsafe` of this crate is here: every wrapper passes pointers to live tensors and
//! takes ownership of what the shim returns.

#![allow(
    unsafe_code,
    reason = "the C++ shim's interface; one of the three places where unsafe may stand"
)]

use crate::{Error, Result, WeightGradient};
use std::ffi::{CStr, c_char};
use tch::Tensor;
use torch_sys::C_tensor;

/// `lampyris::MlaShape` of cpp/kernels.h.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct MlaShape {
    pub(crate) sequence: i64,
    pub(crate) heads: i64,
    pub(crate) nope: i64,
    pub(crate) rope: i64,
    pub(crate) value: i64,
}

/// `lampyris::GqaShape` of cpp/kernels.h.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct GqaShape {
    pub(crate) sequence: i64,
    pub(crate) heads: i64,
    pub(crate) kv_heads: i64,
    pub(crate) head_dim: i64,
    pub(crate) interleaved: bool,
}

/// `lampyris::AdamW` of cpp/kernels.h.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamW {
    pub(crate) lr: f32,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) eps: f32,
    pub(crate) weight_decay: f32,
    pub(crate) correction1: f32,
    pub(crate) correction2: f32,
    pub(crate) grad_scale: f32,
}

/// Opaque `lampyris::Sink`.
#[repr(C)]
pub(crate) struct RawSink {
    _private: [u8; 0],
}

type T = *const C_tensor;

unsafe extern "C" {
    fn lampyris_last_error() -> *const c_char;
    fn lampyris_kernel_name() -> *const c_char;
    fn lampyris_plain_only(on: bool);
    fn lampyris_sink_new() -> *mut RawSink;
    fn lampyris_sink_free(sink: *mut RawSink);
    fn lampyris_sink_len(sink: *const RawSink) -> i64;
    fn lampyris_sink_take(
        sink: *mut RawSink,
        i: i64,
        parameter: *mut i64,
        kind: *mut i32,
        a: *mut *mut C_tensor,
        b: *mut *mut C_tensor,
    );
    fn lampyris_sink_clear(sink: *mut RawSink);
    fn lampyris_grad(
        outputs: *const T,
        grads: *const T,
        n_outputs: i64,
        inputs: *const T,
        n_inputs: i64,
        results: *mut *mut C_tensor,
    ) -> i32;
    fn lampyris_rms_norm(x: T, w: T, eps: f64, sink: *mut RawSink, id: i64) -> *mut C_tensor;
    fn lampyris_norm_linear(
        x: T,
        norm: T,
        eps: f64,
        w: T,
        sink: *mut RawSink,
        norm_id: i64,
        id: i64,
    ) -> *mut C_tensor;
    fn lampyris_linear(x: T, w: T, sink: *mut RawSink, id: i64) -> *mut C_tensor;
    fn lampyris_grouped_linear(
        x: T,
        weights: *const T,
        offsets: *const i64,
        ids: *const i64,
        n: i64,
        sink: *mut RawSink,
    ) -> *mut C_tensor;
    fn lampyris_swiglu(gate_up: T, weight: T) -> *mut C_tensor;
    fn lampyris_embedding(w: T, ids: T, anchor: T, sink: *mut RawSink, id: i64) -> *mut C_tensor;
    fn lampyris_attention(q: T, k: T, v: T, scale: f64) -> *mut C_tensor;
    fn lampyris_mla_pack(
        q_raw: T,
        kv: T,
        k_rope: T,
        cos: T,
        sin: T,
        shape: MlaShape,
        out: *mut *mut C_tensor,
    ) -> i32;
    fn lampyris_gqa_pack(qkv: T, cos: T, sin: T, shape: GqaShape, out: *mut *mut C_tensor) -> i32;
    fn lampyris_gather_rows(x: T, source: T) -> *mut C_tensor;
    fn lampyris_sum_rows(rows: T, position: T, group: T) -> *mut C_tensor;
    fn lampyris_cross_entropy(logits: T, targets: T, scale: f64) -> *mut C_tensor;
    fn lampyris_adamw(master: T, m: T, v: T, grad: T, copy: T, args: *const AdamW) -> i32;
    fn lampyris_square_sum(x: T, out: *mut f64) -> i32;
}

fn last_error() -> Error {
    // SAFETY: the shim returns a NUL-terminated string that lives until the next failing call on this thread.
    let message = unsafe { CStr::from_ptr(lampyris_last_error()) };
    Error(message.to_string_lossy().into_owned())
}

fn take(pointer: *mut C_tensor) -> Result<Tensor> {
    if pointer.is_null() {
        return Err(last_error());
    }
    // SAFETY: a non-null result is a heap-allocated at::Tensor that the shim hands over to us.
    Ok(unsafe { Tensor::from_ptr(pointer) })
}

fn take_three(status: i32, out: [*mut C_tensor; 3]) -> Result<[Tensor; 3]> {
    if status != 0 {
        return Err(last_error());
    }
    let [a, b, c] = out;
    Ok([take(a)?, take(b)?, take(c)?])
}

fn pointers(tensors: &[&Tensor]) -> Vec<T> {
    tensors.iter().map(|tensor| tensor.as_ptr()).collect()
}

/// Owner of a C++ sink.
#[derive(Debug)]
pub(crate) struct SinkHandle(*mut RawSink);

impl SinkHandle {
    pub(crate) fn new() -> SinkHandle {
        // SAFETY: allocates a sink; freed in drop.
        SinkHandle(unsafe { lampyris_sink_new() })
    }

    pub(crate) fn drain(&mut self) -> Vec<WeightGradient> {
        // SAFETY: the sink is alive, and only this thread uses it: autograd runs CPU backward in the calling thread.
        let len = unsafe { lampyris_sink_len(self.0) };
        let out = (0..len).map(|i| self.take(i)).collect();
        // SAFETY: as above; all entries were moved out.
        unsafe { lampyris_sink_clear(self.0) };
        out
    }

    fn take(&mut self, i: i64) -> WeightGradient {
        let (mut parameter, mut kind) = (0, 0);
        let (mut a, mut b) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: i is below the sink's length; a and b become tensors that we own (b may stay null).
        let (a, b) = unsafe {
            lampyris_sink_take(self.0, i, &mut parameter, &mut kind, &mut a, &mut b);
            (Tensor::from_ptr(a), (!b.is_null()).then(|| Tensor::from_ptr(b)))
        };
        let parameter = usize::try_from(parameter).expect("parameter ids come from usize");
        match (kind, b) {
            (0, Some(dy)) => WeightGradient::Matmul { parameter, x: a, dy },
            (2, Some(dy)) => WeightGradient::Embedding { parameter, ids: a, dy },
            _ => WeightGradient::Direct { parameter, gradient: a },
        }
    }
}

impl Drop for SinkHandle {
    fn drop(&mut self) {
        // SAFETY: allocated in new, freed once.
        unsafe { lampyris_sink_free(self.0) }
    }
}

pub(crate) fn grad(
    outputs: &[Tensor],
    grad_outputs: &[Tensor],
    inputs: &[&Tensor],
) -> Result<Vec<Option<Tensor>>> {
    assert_eq!(outputs.len(), grad_outputs.len());
    let outputs = pointers(&outputs.iter().collect::<Vec<_>>());
    let grads = pointers(&grad_outputs.iter().collect::<Vec<_>>());
    let inputs = pointers(inputs);
    let mut results = vec![std::ptr::null_mut(); inputs.len()];
    let (n, m) = (crate::dim(outputs.len()), crate::dim(inputs.len()));
    // SAFETY: all arrays have the lengths given and hold live tensors; results has room for m pointers.
    let status = unsafe {
        lampyris_grad(outputs.as_ptr(), grads.as_ptr(), n, inputs.as_ptr(), m, results.as_mut_ptr())
    };
    if status != 0 {
        return Err(last_error());
    }
    results.into_iter().map(|r| if r.is_null() { Ok(None) } else { take(r).map(Some) }).collect()
}

pub(crate) fn plain_only(on: bool) {
    // SAFETY: sets an atomic flag.
    unsafe { lampyris_plain_only(on) }
}

pub(crate) fn kernel_name() -> &'static str {
    // SAFETY: returns a string literal.
    crate::text(unsafe { CStr::from_ptr(lampyris_kernel_name()) })
}

fn id(parameter: usize) -> i64 {
    crate::dim(parameter)
}

pub(crate) fn rms_norm(
    x: &Tensor,
    w: &Tensor,
    eps: f64,
    sink: &SinkHandle,
    parameter: usize,
) -> Result<Tensor> {
    // SAFETY: live tensors; the sink outlives the graph (see Sink).
    take(unsafe { lampyris_rms_norm(x.as_ptr(), w.as_ptr(), eps, sink.0, id(parameter)) })
}

pub(crate) fn norm_linear(
    x: &Tensor,
    norm: (&Tensor, usize),
    eps: f64,
    w: (&Tensor, usize),
    sink: &SinkHandle,
) -> Result<Tensor> {
    let (norm, norm_id) = norm;
    let (w, w_id) = w;
    // SAFETY: live tensors; the sink outlives the graph (see Sink).
    take(unsafe {
        let (x, norm, w) = (x.as_ptr(), norm.as_ptr(), w.as_ptr());
        lampyris_norm_linear(x, norm, eps, w, sink.0, id(norm_id), id(w_id))
    })
}

pub(crate) fn linear(x: &Tensor, w: (&Tensor, usize), sink: &SinkHandle) -> Result<Tensor> {
    // SAFETY: live tensors; the sink outlives the graph (see Sink).
    take(unsafe { lampyris_linear(x.as_ptr(), w.0.as_ptr(), sink.0, id(w.1)) })
}

pub(crate) fn grouped_linear(
    x: &Tensor,
    weights: &[(&Tensor, usize)],
    offsets: &[i64],
    sink: &SinkHandle,
) -> Result<Tensor> {
    assert_eq!(offsets.len(), weights.len() + 1);
    let ids: Vec<i64> = weights.iter().map(|w| id(w.1)).collect();
    let weights: Vec<T> = weights.iter().map(|w| w.0.as_ptr() as T).collect();
    let n = crate::dim(weights.len());
    // SAFETY: arrays of n weights and ids and n + 1 offsets; live tensors; the sink outlives the graph.
    take(unsafe {
        let (weights, offsets, ids) = (weights.as_ptr(), offsets.as_ptr(), ids.as_ptr());
        lampyris_grouped_linear(x.as_ptr(), weights, offsets, ids, n, sink.0)
    })
}

fn or_null(tensor: Option<&Tensor>) -> T {
    tensor.map_or(std::ptr::null(), |tensor| tensor.as_ptr() as T)
}

pub(crate) fn swiglu(gate_up: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
    // SAFETY: live tensors; weight may be null.
    take(unsafe { lampyris_swiglu(gate_up.as_ptr(), or_null(weight)) })
}

pub(crate) fn embedding(
    w: (&Tensor, usize),
    ids: &Tensor,
    anchor: &Tensor,
    sink: &SinkHandle,
) -> Result<Tensor> {
    // SAFETY: live tensors; the sink outlives the graph (see Sink).
    take(unsafe {
        lampyris_embedding(w.0.as_ptr(), ids.as_ptr(), anchor.as_ptr(), sink.0, id(w.1))
    })
}

pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    // SAFETY: live tensors.
    take(unsafe { lampyris_attention(q.as_ptr(), k.as_ptr(), v.as_ptr(), scale) })
}

pub(crate) fn mla_pack(
    q_raw: &Tensor,
    kv: &Tensor,
    k_rope: &Tensor,
    angles: (&Tensor, &Tensor),
    shape: MlaShape,
) -> Result<[Tensor; 3]> {
    let mut out = [std::ptr::null_mut(); 3];
    // SAFETY: live tensors; out has room for the three results.
    let status = unsafe {
        let (q, kv, k) = (q_raw.as_ptr(), kv.as_ptr(), k_rope.as_ptr());
        lampyris_mla_pack(q, kv, k, angles.0.as_ptr(), angles.1.as_ptr(), shape, out.as_mut_ptr())
    };
    take_three(status, out)
}

pub(crate) fn gqa_pack(
    qkv: &Tensor,
    angles: (&Tensor, &Tensor),
    shape: GqaShape,
) -> Result<[Tensor; 3]> {
    let mut out = [std::ptr::null_mut(); 3];
    // SAFETY: live tensors; out has room for the three results.
    let status = unsafe {
        let (cos, sin) = (angles.0.as_ptr(), angles.1.as_ptr());
        lampyris_gqa_pack(qkv.as_ptr(), cos, sin, shape, out.as_mut_ptr())
    };
    take_three(status, out)
}

pub(crate) fn gather_rows(x: &Tensor, source: &Tensor) -> Result<Tensor> {
    // SAFETY: live tensors; source holds row numbers of x or negatives.
    take(unsafe { lampyris_gather_rows(x.as_ptr(), source.as_ptr()) })
}

pub(crate) fn sum_rows(rows: &Tensor, position: &Tensor, group: &Tensor) -> Result<Tensor> {
    // SAFETY: live tensors; position holds row numbers of rows.
    take(unsafe { lampyris_sum_rows(rows.as_ptr(), position.as_ptr(), group.as_ptr()) })
}

pub(crate) fn cross_entropy(logits: &Tensor, targets: &Tensor, scale: f64) -> Result<Tensor> {
    // SAFETY: live tensors; logits is overwritten in place.
    take(unsafe { lampyris_cross_entropy(logits.as_ptr(), targets.as_ptr(), scale) })
}

pub(crate) fn adamw(
    state: [&Tensor; 3],
    gradient: &Tensor,
    copy: Option<&Tensor>,
    args: &AdamW,
) -> Result<()> {
    let [master, m, v] = state.map(|tensor| tensor.as_ptr() as T);
    // SAFETY: live tensors of one length; master, m, v and copy are overwritten in place.
    let status = unsafe { lampyris_adamw(master, m, v, gradient.as_ptr(), or_null(copy), args) };
    if status == 0 { Ok(()) } else { Err(last_error()) }
}

pub(crate) fn square_sum(x: &Tensor) -> Result<f64> {
    let mut out = 0.0;
    // SAFETY: a live tensor and room for one f64.
    let status = unsafe { lampyris_square_sum(x.as_ptr(), &mut out) };
    if status == 0 { Ok(out) } else { Err(last_error()) }
}
