//! The kernel programs, as embedded in this binary.

use super::KernelError;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard-ebpf"));

/// # Errors
/// [`KernelError::NoObject`] where this binary was built without them.
pub fn object() -> Result<&'static [u8], KernelError> {
    if OBJECT.is_empty() {
        return Err(KernelError::NoObject);
    }
    Ok(OBJECT)
}
