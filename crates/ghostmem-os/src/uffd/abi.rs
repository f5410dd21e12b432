//! The numbers and structures of the kernel's interface
//! (`include/uapi/linux/userfaultfd.h`).

pub(super) const API: u64 = 0xAA;
pub(super) const REGISTER_MODE_MISSING: u64 = 1 << 0;
pub(super) const REGISTER_MODE_WP: u64 = 1 << 1;
pub(super) const COPY_MODE_WP: u64 = 1 << 1;
pub(super) const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
/// Of UFFDIO_COPY and UFFDIO_ZEROPAGE.
pub(super) const PLACE_MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;
pub(super) const PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;
pub(super) const PAGEFAULT_FLAG_WP: u64 = 1 << 1;
pub(super) const EVENT_PAGEFAULT: u8 = 0x12;

/// The ioctl request number of the userfaultfd family: direction bits (2 =
/// read, 3 = read and write), argument size, letter 0xAA, number.
const fn request(direction: u64, number: u64, size: usize) -> libc::c_ulong {
    (direction << 30) | ((size as u64) << 16) | (0xAA << 8) | number
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}
#[repr(C)]
pub(super) struct ApiArg {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}
#[repr(C)]
pub(super) struct RegisterArg {
    pub(super) range: Range,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}
#[repr(C)]
pub(super) struct CopyArg {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    pub(super) copied: i64,
}
#[repr(C)]
pub(super) struct ZeroArg {
    pub(super) range: Range,
    pub(super) mode: u64,
    pub(super) zeroed: i64,
}
#[repr(C)]
pub(super) struct ProtectArg {
    pub(super) range: Range,
    pub(super) mode: u64,
}

pub(super) const REQ_API: libc::c_ulong = request(3, 0x3F, size_of::<ApiArg>());
pub(super) const REQ_REGISTER: libc::c_ulong = request(3, 0x00, size_of::<RegisterArg>());
pub(super) const REQ_UNREGISTER: libc::c_ulong = request(2, 0x01, size_of::<Range>());
pub(super) const REQ_WAKE: libc::c_ulong = request(2, 0x02, size_of::<Range>());
pub(super) const REQ_COPY: libc::c_ulong = request(3, 0x03, size_of::<CopyArg>());
pub(super) const REQ_ZEROPAGE: libc::c_ulong = request(3, 0x04, size_of::<ZeroArg>());
pub(super) const REQ_WRITEPROTECT: libc::c_ulong = request(3, 0x06, size_of::<ProtectArg>());
/// `USERFAULTFD_IOC_NEW` of `/dev/userfaultfd`: `_IO(0xAA, 0x00)`.
pub(super) const REQ_DEVICE_NEW: libc::c_ulong = 0xAA00;

pub(super) const fn range(base: usize, len: usize) -> Range {
    Range {
        start: base as u64,
        len: len as u64,
    }
}
