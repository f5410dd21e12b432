//! A message of recvmsg(2), sendmsg(2) and their kin, with everything in ordinary memory: its
//! header, its address, its control data and its buffers.

use crate::bounce::{Lease, most_bytes};
use crate::ghost;
use crate::guarded::{self, BadAddress, Touch, load, store};
use crate::raw::{self, Answer, call, failed};

use super::buffers::{Kinds, VECTORS_MAX, Vector, Vectors, touches_ghost};
use super::messages::{NAME_MAX, fitting, writes};
use super::parts::{Rest, StandIn, Writes, may_have_written};

/// More control data than the kernel takes (`optmem_max`), and gives.
const CONTROL_MAX: usize = 1 << 20;

/// `struct msghdr`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    name: usize,
    name_bytes: u32,
    gap: u32,
    vectors: usize,
    count: usize,
    control: usize,
    control_bytes: usize,
    flags: i32,
    gap_too: u32,
}

pub(super) const HEADER_BYTES: usize = size_of::<Header>();
const NAME_BYTES_AT: usize = core::mem::offset_of!(Header, name_bytes);
const CONTROL_BYTES_AT: usize = core::mem::offset_of!(Header, control_bytes);
pub(super) const FLAGS_AT: usize = core::mem::offset_of!(Header, flags);

/// One message with everything in ordinary memory.
pub(super) struct Copied {
    asked: Asked,
    stand_in: StandIn,
    /// Where our header is, and our list of buffers.
    pub(super) ours: usize,
    list: usize,
    data: usize,
    data_bytes: usize,
    writes: Writes,
}

/// Why there is no copy of a message: the call's answer.
pub(super) struct Refused(pub(super) Answer);

pub(super) const NO_MEMORY: Refused = Refused(-(libc::ENOMEM as Answer));

impl From<BadAddress> for Refused {
    fn from(_: BadAddress) -> Self {
        Self(-(libc::EFAULT as Answer))
    }
}

/// What a call with these flags writes that receives into a list of buffers.
fn writes_to(fd: usize, flags: usize, kinds: &Kinds) -> Writes {
    match writes(fd, flags) {
        _ if !kinds.has_ghost() => Writes::Said,
        Writes::Said if kinds.is_mixed() => Writes::More,
        writes => writes,
    }
}

/// A message of nothing but a list of buffers.
pub(super) const fn bare(vectors: usize, count: usize) -> Header {
    Header {
        name: 0,
        name_bytes: 0,
        gap: 0,
        vectors,
        count,
        control: 0,
        control_bytes: 0,
        flags: 0,
        gap_too: 0,
    }
}

/// The kernel's answer to a message with buffers that it refuses.
fn refusal(fd: usize, bad: [Vector; 2], receives: bool, flags: usize) -> Answer {
    let header = bare((&raw const bad) as usize, 2);
    let number = if receives { 47 } else { 46 };
    raw::syscall(number, [fd, (&raw const header) as usize, flags, 0, 0, 0])
}

/// Whether a message has ghost memory anywhere.
pub(super) fn has_ghost(at: usize) -> Touch<bool> {
    if ghost::is_ghost(at) {
        return Ok(true);
    }
    let header: Header = load(at)?;
    let control_bytes = header.control_bytes.clamp(1, CONTROL_MAX);
    if touches_ghost(header.name, NAME_MAX) || touches_ghost(header.control, control_bytes) {
        return Ok(true);
    }
    if header.count > VECTORS_MAX {
        return Ok(false);
    }
    Vectors::new(header.vectors, header.count).any_ghost()
}

/// A header that the kernel refuses with this answer, and where its list of buffers is, for which
/// there is room at `list`.
pub(super) fn store_refused(at: usize, list: usize, answer: Answer) -> Touch<()> {
    /// Nothing is there, in no process.
    const NOWHERE: usize = 1;
    let header = match -answer as i32 {
        libc::EMSGSIZE => bare(NOWHERE, VECTORS_MAX + 1),
        libc::EINVAL => {
            let negative = Vector {
                base: NOWHERE,
                bytes: usize::MAX,
            };
            store(list, [negative; 2])?;
            bare(list, 2)
        }
        _ => bare(NOWHERE, 1),
    };
    store(at, header)
}

/// What a call says of a message.
pub(super) struct Asked {
    fd: usize,
    theirs: usize,
    receives: bool,
    flags: usize,
    header: Header,
    kinds: Kinds,
    /// Bytes of its buffers, and how many of these get a stand-in.
    whole: usize,
    stand_in_bytes: usize,
}

impl Asked {
    pub(super) fn of(
        fd: usize,
        theirs: usize,
        receives: bool,
        flags: usize,
    ) -> Result<Self, Refused> {
        let header: Header = load(theirs)?;
        if header.count > VECTORS_MAX {
            return Err(Refused(-(libc::EMSGSIZE as Answer)));
        }
        let vectors = Vectors::new(header.vectors, header.count);
        if let Some(bad) = vectors.refused()? {
            return Err(Refused(refusal(fd, bad, receives, flags)));
        }
        let whole = vectors.total()?;
        let kinds = vectors.kinds()?;
        // Where the kernel is to read, one stand-in is for all; where it is to write, buffers
        // that are not ghost memory are its own affair.
        let stand_in_bytes = match receives && !kinds.has_ghost() {
            true => 0,
            false => whole.min(most_bytes()),
        };
        Ok(Self {
            fd,
            theirs,
            receives,
            flags,
            header,
            kinds,
            whole,
            stand_in_bytes,
        })
    }

    /// Whether what is told of a message has its places: in the header, in name and control data,
    /// at both ends of each.
    pub(super) fn can_be_told(&self) -> bool {
        let header = &self.header;
        let name = (header.name, header.name_bytes as usize);
        let control = (header.control, header.control_bytes);
        let can_be_written = |(from, bytes): (usize, usize)| {
            let ends = [from, from.wrapping_add(bytes.wrapping_sub(1))];
            from == 0 || bytes == 0 || ends.iter().all(|&at| guarded::open(at).is_ok())
        };
        [(self.theirs, HEADER_BYTES), name, control]
            .into_iter()
            .all(can_be_written)
    }

    /// Of one that is longer than a stand-in may be, how much gets one: as [`fitting`], which may
    /// wait for a message.
    pub(super) fn fit(&mut self) -> Result<(), Refused> {
        if self.stand_in_bytes > 0 {
            let fitting = fitting(self.fd, self.whole, self.receives, self.flags);
            self.stand_in_bytes = fitting.map_err(Refused)?;
        }
        Ok(())
    }

    fn name_bytes(&self) -> usize {
        (self.header.name_bytes as usize).min(NAME_MAX)
    }

    fn control_bytes(&self) -> usize {
        self.header.control_bytes.min(CONTROL_MAX)
    }

    const fn list_bytes(&self) -> usize {
        let buffers = if self.receives { self.header.count } else { 1 };
        buffers * size_of::<Vector>()
    }

    /// How much of a lease it takes, its header included.
    pub(super) fn room(&self) -> usize {
        self.stand_in_bytes + self.name_bytes() + self.control_bytes() + self.list_bytes() + 512
    }

    /// Copies it, with its header at `ours`.
    pub(super) fn copied(self, ours: usize, lease: &mut Lease) -> Result<Copied, Refused> {
        let (name_bytes, control_bytes) = (self.name_bytes(), self.control_bytes());
        let mut carve = |bytes| lease.carve(bytes).ok_or(NO_MEMORY);
        let list = carve(self.list_bytes())?;
        let name = carve(name_bytes)?;
        let control = carve(control_bytes)?;
        let data = carve(self.stand_in_bytes)?;
        let Self {
            fd,
            receives,
            flags,
            header,
            whole,
            stand_in_bytes,
            ..
        } = self;
        let kinds = &self.kinds;
        let vectors = Vectors::new(header.vectors, header.count);
        let data_bytes = match stand_in_bytes {
            0 => whole,
            bytes => bytes,
        };
        // What is received is not read before.
        if header.name != 0 && !receives {
            guarded::copy(name, header.name, name_bytes)?;
        }
        if header.control != 0 && !receives {
            guarded::copy(control, header.control, control_bytes)?;
        }
        let good = if receives {
            vectors.writable(kinds)?.min(data_bytes)
        } else {
            vectors.copy(0, data, data_bytes, true)
        };
        let writes = writes_to(fd, flags, kinds);
        let stand_in = if receives {
            StandIn::to_receive(data, data_bytes, good, writes, |place| {
                vectors.copy_of(kinds, 0, place, good, true);
            })
        } else {
            StandIn::of(data, data_bytes, good)
        };
        let stand_in = stand_in.map_err(|()| NO_MEMORY)?;
        let data = stand_in.place;
        let count = if receives {
            vectors.stand_ins(kinds, (0, data_bytes), data, list)?
        } else {
            let one = Vector {
                base: data,
                bytes: data_bytes,
            };
            store(list, one)?;
            usize::from(header.count > 0)
        };
        let copy = Header {
            name: if header.name == 0 { 0 } else { name },
            control: if header.control == 0 { 0 } else { control },
            control_bytes,
            vectors: list,
            count,
            ..header
        };
        store(ours, copy)?;
        Ok(Copied {
            asked: self,
            stand_in,
            ours,
            list,
            data,
            data_bytes,
            writes,
        })
    }
}

impl Copied {
    /// What the program's buffers have room for.
    pub(super) const fn whole(&self) -> usize {
        self.asked.whole
    }

    const fn vectors(&self) -> Vectors {
        Vectors::new(self.asked.header.vectors, self.asked.header.count)
    }

    const fn rest(&self, fd: usize, flags: usize) -> Rest {
        Rest {
            fd,
            flags,
            place: self.data,
            most: self.data_bytes,
            whole: self.asked.whole,
        }
    }

    /// Copies what is in the stand-in to its buffers; how many of the first came there.
    fn give_part(&self, skip: usize, place: usize, part: usize) -> usize {
        let vectors = self.vectors();
        vectors.copy_of(&self.asked.kinds, skip, place, part, false)
    }

    /// Makes the kernel's list of the buffers that a part goes to; how many there are.
    fn list_of(&self, window: (usize, usize), at: usize) -> Touch<usize> {
        let vectors = self.vectors();
        vectors.stand_ins(&self.asked.kinds, window, self.data, at)
    }

    /// Receives a part of it that comes later.
    fn receive_part(&self, fd: usize, window: (usize, usize), flags: usize) -> Answer {
        match self.list_of(window, self.list) {
            Ok(count) => {
                let header = bare(self.list, count);
                call!(libc::SYS_recvmsg, fd, &raw const header, flags)
            }
            Err(BadAddress) => -(libc::EFAULT as Answer),
        }
    }

    /// What became of one that was sent: sends what there was no stand-in for. The answer to the
    /// call.
    pub(super) fn sent(&self, fd: usize, flags: usize, answer: Answer) -> Touch<Answer> {
        let vectors = self.vectors();
        let take = |skip, part| vectors.copy(skip, self.data, part, true);
        self.rest(fd, flags).send_after(answer, take)
    }

    /// What became of one that was received: gives the program what was received, and receives what there was no
    /// stand-in for. The answer to the call.
    pub(super) fn received(&self, fd: usize, flags: usize, answer: Answer) -> Touch<Answer> {
        if failed(answer) {
            if may_have_written(answer) {
                self.failed();
            }
            return Ok(answer);
        }
        self.give(answer as usize)?;
        // What comes beside the bytes of a later part would be lost.
        let flags = if self.asked.header.control == 0 {
            flags
        } else {
            0
        };
        self.rest(fd, flags).receive_after(
            answer,
            |skip, part, flags| self.receive_part(fd, (skip, part), flags),
            |skip, part| self.give_part(skip, self.data, part),
            (self.asked.header.count, |skip, part, at| {
                self.list_of((skip, part), at)
            }),
        )
    }

    /// Gives what a call has written of it that failed.
    pub(super) fn failed(&self) {
        let give = |skip, place, part| self.give_part(skip, place, part);
        self.stand_in.give(0, give);
    }

    /// Gives the program what was received: what the kernel writes, no more.
    fn give(&self, bytes: usize) -> Touch<()> {
        let got: Header = load(self.ours)?;
        let bytes = bytes.min(self.data_bytes);
        let give = |skip, place, part| self.give_part(skip, place, part);
        if !self.stand_in.give_received(bytes, self.writes, give) {
            return Err(BadAddress);
        }
        if self.asked.header.name != 0 {
            let most = self.asked.header.name_bytes.min(got.name_bytes) as usize;
            guarded::copy(self.asked.header.name, got.name, most.min(NAME_MAX))?;
            store(self.asked.theirs + NAME_BYTES_AT, got.name_bytes)?;
        }
        if self.asked.header.control != 0 {
            let most = self.asked.header.control_bytes.min(got.control_bytes);
            give_control(
                self.asked.header.control,
                got.control,
                most.min(CONTROL_MAX),
            )?;
        }
        store(self.asked.theirs + CONTROL_BYTES_AT, got.control_bytes)?;
        store(self.asked.theirs + FLAGS_AT, got.flags)
    }
}

/// Copies control data as far as the kernel writes it: what aligns the next message is left as
/// it is (cmsg(3)).
fn give_control(theirs: usize, ours: usize, bytes: usize) -> Touch<()> {
    const HEAD: usize = size_of::<libc::cmsghdr>();
    let mut at = 0;
    while at < bytes {
        let left = bytes - at;
        let length = match left {
            HEAD.. => load(ours + at)?,
            _ => left,
        };
        // No message is shorter than its head.
        let part = if length < HEAD {
            left
        } else {
            length.min(left)
        };
        guarded::copy(theirs + at, ours + at, part)?;
        at += part.next_multiple_of(size_of::<usize>());
    }
    Ok(())
}
