//! Sealing records and opening them again.
//!
//! ```text
//!  record   owner (5) │ packed bytes │ tag (16)     encrypted
//!           owner (5) │ packed bytes │ XXH3 (8)     checksummed
//!  nonce    filling (8) │ record in the segment (4)
//!  associated data    generation (8) │ slot (4) │ codec (1) │ length (2) │ version (1)
//! ```
//! A generation is the filling, counted up for every segment that is begun, and
//! the place of the key in the vault. The pair of filling and record number occurs
//! once under one key: a segment that is used again is a new filling, a record
//! number is not used again in it even when its write failed.
//!
//! Everything here works on the caller's bytes and is async-signal-safe, but for
//! making keys.

use ghostmem_os::OsError;
use ghostmem_os::random;
use ghostmem_os::vault::Vault;
use ghostmem_store::tier::TierCause;
use ring::aead::{
    AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::table::{Record, SlotNumber};

/// Keys at once: that of the segments being filled, and older ones of segments that
/// are still alive.
pub(crate) const KEYS: usize = 64;
/// Bytes of an owner in a record.
pub(crate) const OWNER_BYTES: usize = 5;
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 8;
/// Most bytes a record takes beside its packed bytes.
pub(crate) const OVERHEAD_MAX: usize = OWNER_BYTES + TAG_BYTES;

const VERSION: u8 = 1;
const KEY_BITS: u32 = 8;

/// A filling and the key it is sealed with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Generation(u64);

impl Generation {
    pub(crate) const fn new(filling: u64, key: usize) -> Self {
        Self(filling << KEY_BITS | key as u64)
    }

    pub(crate) const fn of(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    pub(crate) const fn key(self) -> usize {
        (self.0 & ((1 << KEY_BITS) - 1)) as usize
    }

    const fn filling(self) -> u64 {
        self.0 >> KEY_BITS
    }
}

/// The keys, if records are encrypted.
#[derive(Debug)]
pub(crate) struct Seals {
    vault: Option<Vault<Key, KEYS>>,
}

struct Key {
    key: LessSafeKey,
    #[cfg(test)]
    fingerprint: u64,
}

impl Seals {
    pub(crate) fn new(encrypt: bool) -> Result<Self, OsError> {
        Ok(Self {
            vault: encrypt.then(Vault::new).transpose()?,
        })
    }

    pub(crate) const fn is_encrypting(&self) -> bool {
        self.vault.is_some()
    }

    /// Whether keys are in locked memory; true without keys.
    pub(crate) fn is_locked(&self) -> bool {
        self.vault.as_ref().is_none_or(Vault::is_locked)
    }

    pub(crate) fn after_fork_in_child(&self) {
        if let Some(vault) = &self.vault {
            vault.lock_again();
        }
    }

    /// Bytes a record takes beside its packed bytes.
    pub(crate) const fn overhead(&self) -> usize {
        if self.vault.is_some() {
            OVERHEAD_MAX
        } else {
            OWNER_BYTES + CHECKSUM_BYTES
        }
    }

    /// Wipes the old key in a place, if there is one, and makes a new one; whether
    /// that worked.
    pub(crate) fn renew(&self, place: usize) -> bool {
        let Some(vault) = &self.vault else {
            return true;
        };
        vault.clear(place);
        let mut made = false;
        // The raw key never leaves the stack that the vault scrubs.
        let put = vault.put(place, || {
            let (key, random) = new_key();
            made = random;
            key
        });
        // Without random bytes there is no key: what was put is wiped unused.
        if put && !made {
            vault.clear(place);
        }
        put && made
    }

    /// Wipes a key that no record needs any more.
    pub(crate) fn drop_key(&self, place: usize) {
        if let Some(vault) = &self.vault {
            vault.clear(place);
        }
    }

    /// Seals a record: `bytes` is owner, packed bytes and room for the tag. `false`
    /// when there is no key.
    pub(crate) fn seal(&self, record: &Record, bytes: &mut [u8]) -> bool {
        let body = OWNER_BYTES + record.len;
        let Some(vault) = &self.vault else {
            let (body, tag) = bytes.split_at_mut(body);
            tag.copy_from_slice(&checksum(record, body).to_le_bytes());
            return true;
        };
        let generation = Generation::of(record.generation);
        let Some(key) = vault.get(generation.key()) else {
            return false;
        };
        #[cfg(test)]
        tests::note(key.fingerprint, nonce_bytes(record));
        let (body, room) = bytes.split_at_mut(body);
        let nonce = Nonce::assume_unique_for_key(nonce_bytes(record));
        let aad = Aad::from(associated(record));
        match key.key.seal_in_place_separate_tag(nonce, aad, body) {
            Ok(tag) => room.copy_from_slice(tag.as_ref()),
            Err(_) => return false,
        }
        true
    }

    /// Opens a record in place and checks it: the owner, and where in `bytes` its packed
    /// bytes are.
    pub(crate) fn open<'a>(
        &self,
        record: &Record,
        bytes: &'a mut [u8],
    ) -> Result<(u64, &'a [u8]), TierCause> {
        let (body, tag) = bytes.split_at_mut(OWNER_BYTES + record.len);
        if let Some(vault) = &self.vault {
            let key = vault.get(Generation::of(record.generation).key());
            let key = key.ok_or(TierCause::NoRecord)?;
            let tag = Tag::try_from(&*tag).map_err(|_| TierCause::Tampered)?;
            let nonce = Nonce::assume_unique_for_key(nonce_bytes(record));
            let aad = Aad::from(associated(record));
            key.key
                .open_in_place_separate_tag(nonce, aad, tag, body, 0..)
                .map_err(|_| TierCause::Tampered)?;
        } else if *tag != checksum(record, body).to_le_bytes() {
            return Err(TierCause::Checksum);
        }
        let (owner, packed) = body.split_at(OWNER_BYTES);
        let mut wide = [0; 8];
        wide[..OWNER_BYTES].copy_from_slice(owner);
        Ok((u64::from_le_bytes(wide), packed))
    }
}

fn new_key() -> (Key, bool) {
    let mut raw = [0_u8; KEY_BYTES];
    let is_random = random::fill(&mut raw).is_ok();
    let unbound = UnboundKey::new(algorithm(), &raw).expect("both algorithms have 32-byte keys");
    let key = Key {
        key: LessSafeKey::new(unbound),
        #[cfg(test)]
        fingerprint: xxh3_64_with_seed(&raw, 0),
    };
    (key, is_random)
}

/// AES where the processor has it: without, ChaCha20 is faster and as good.
fn algorithm() -> &'static Algorithm {
    #[cfg(target_arch = "x86_64")]
    if !std::arch::is_x86_feature_detected!("aes")
        || !std::arch::is_x86_feature_detected!("pclmulqdq")
    {
        return &CHACHA20_POLY1305;
    }
    &AES_256_GCM
}

fn nonce_bytes(record: &Record) -> [u8; 12] {
    let filling = Generation::of(record.generation).filling();
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&filling.to_le_bytes());
    nonce[8..].copy_from_slice(&record.slot.index().to_le_bytes());
    nonce
}

fn associated(record: &Record) -> [u8; 16] {
    let mut data = [0; 16];
    data[..8].copy_from_slice(&record.generation.to_le_bytes());
    data[8..12].copy_from_slice(&record.slot.number().to_le_bytes());
    data[12] = record.codec;
    data[13..15].copy_from_slice(&(record.len as u16).to_le_bytes());
    data[15] = VERSION;
    data
}

fn checksum(record: &Record, body: &[u8]) -> u64 {
    xxh3_64_with_seed(body, xxh3_64_with_seed(&associated(record), 0))
}

#[cfg(test)]
mod tests;
