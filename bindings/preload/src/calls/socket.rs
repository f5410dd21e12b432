//! What is asked about sockets: of which kind one is, and how long its next message is. Nothing
//! that others see changes by that.

use crate::bounce::most_bytes;
use crate::raw::{Answer, call, failed, own};

/// Whether a socket has no messages.
pub(super) fn is_stream(fd: usize) -> bool {
    kind_of(fd) == Some(libc::SOCK_STREAM)
}

fn kind_of(fd: usize) -> Option<i32> {
    option_of(fd, libc::SO_TYPE)
}

/// An option of a socket that is a number.
fn option_of(fd: usize, option: i32) -> Option<i32> {
    let (mut value, mut bytes) = (0_i32, 4_u32);
    let answer = own!(
        libc::SYS_getsockopt,
        fd,
        libc::SOL_SOCKET,
        option,
        &raw mut value,
        &raw mut bytes
    );
    (!failed(answer)).then_some(value)
}

/// How much of a buffer that is longer than a stand-in may be gets one, to receive the next message
/// of a socket: waits for that, as the call itself would. An error is the answer.
pub(super) fn room_for_next(fd: usize, bytes: usize, flags: usize) -> Result<usize, Answer> {
    let most = most_bytes();
    // What is told of errors is no longer than a packet, and a look would take it away.
    if flags & libc::MSG_ERRQUEUE as usize != 0 {
        return Ok(bytes.min(most));
    }
    let has_offset = has_peek_offset(fd);
    let next = if has_offset && flags & libc::MSG_PEEK as usize == 0 {
        // A look would begin elsewhere. Pages that nothing arrives on cost nothing.
        match length_of_next(fd) {
            Some(next) => next,
            None => return Ok(bytes),
        }
    } else {
        // It sees what the call will. Where each look moves on, one of no bytes does not; but
        // there are sockets (vsock(7)) that have no message to look at for it.
        let length = usize::from(!has_offset);
        let kept = flags & libc::MSG_DONTWAIT as usize;
        let look = kept | (libc::MSG_PEEK | libc::MSG_TRUNC) as usize;
        let mut byte = 0_u8;
        let answer = call!(libc::SYS_recvfrom, fd, &raw mut byte, length, look, 0, 0);
        usize::try_from(answer).map_err(|_| answer)?
    };
    if next > most {
        Err(-(libc::ENOBUFS as Answer))
    } else {
        Ok(bytes.min(most))
    }
}

/// How long the next message of a socket is, or is at most; `None`: there is none yet, or the
/// kernel tells of many together (unix(7)).
fn length_of_next(fd: usize) -> Option<usize> {
    let mut bytes = 0_i32;
    let answer = own!(libc::SYS_ioctl, fd, libc::FIONREAD, &raw mut bytes);
    let bytes = usize::try_from(bytes).ok().filter(|_| !failed(answer))?;
    let is_one = bytes <= most_bytes() || kind_of(fd) == Some(libc::SOCK_DGRAM);
    (bytes > 0 && is_one).then_some(bytes)
}

/// Whether looks at a socket (`MSG_PEEK`) go on behind each other, or begin somewhere else than at
/// its first byte, as the program has set it (`SO_PEEK_OFF`, socket(7)).
pub(super) fn has_peek_offset(fd: usize) -> bool {
    option_of(fd, libc::SO_PEEK_OFF).is_some_and(|offset| offset >= 0)
}
