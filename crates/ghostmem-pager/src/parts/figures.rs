//! The one table of what a heap counts and holds.
//!
//! A row is a figure's text, its name, its unit, and where it shows beside [`Stats`]: all
//! figures are in `--stats-json` and can be asked for by name from C.
//!
//! ```text
//!   row ─► Counter::NAME       the handle that `Metrics::add` takes     (counters)
//!       ─► Gauges::NAME        what `watch::stats` has to read          (gauges)
//!       ─► Stats::NAME         the public field, with the text as its documentation
//!       ─► Stats::figures()    name, kind, unit, text and value: JSON, tables, C, bench
//! ```
//! A new counter is a row here and its `add`; a new gauge is a row and its reading. Places:
//!
//! * `c N`: word `N` of the C structure `ghostmem_stats`. Programs are compiled with these
//!   numbers, so a number never changes, and a new one is the next. Without one, C has the
//!   figure by its name (`ghostmem_stat`).
//! * `table`: a line of its own in `ghostmem run --stats`, where it is not zero.

use core::ffi::CStr;

use crate::parts::latency::LatencyHistogram;

/// What a figure's number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FigureKind {
    /// How it is now.
    Gauge,
    /// What happened since the heap was made; never falls.
    Counter,
}

/// What a figure's number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FigureUnit {
    /// Bytes.
    Bytes,
    /// Pages of 4 KiB.
    Pages,
    /// Things that happened.
    Events,
    /// Nanoseconds.
    Nanoseconds,
    /// Millionths of a whole.
    Millionths,
}

/// One figure of [`Stats`], with what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Figure {
    /// The field of [`Stats`], or its method for those that are worked out.
    pub name: &'static str,
    /// The same for C.
    pub c_name: &'static CStr,
    /// Whether it is counted or looked at.
    pub kind: FigureKind,
    /// Of what it is a number.
    pub unit: FigureUnit,
    /// What it is, in a sentence or two.
    pub text: &'static str,
    /// Its word in the C structure `ghostmem_stats`, if it has one.
    pub c_word: Option<usize>,
    /// It has a line of its own in the table of `ghostmem run --stats`.
    pub in_table: bool,
    /// The number.
    pub value: u64,
}

/// The number of a place `c N` among a row's places.
macro_rules! c_word {
    () => { None };
    (c $word:literal $($rest:tt)*) => { Some($word) };
    ($place:tt $($rest:tt)*) => { c_word!($($rest)*) };
}

/// Whether `table` is among a row's places.
macro_rules! in_table {
    () => { false };
    (table $($rest:tt)*) => { true };
    ($place:tt $($rest:tt)*) => { in_table!($($rest)*) };
}

macro_rules! figure {
    ($name:ident, $kind:ident, $unit:ident, [$($place:tt)*], [$($text:literal)+], $value:expr) => {
        Figure {
            name: stringify!($name),
            c_name: const {
                match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => panic!("a name has no zero in it"),
                }
            },
            kind: FigureKind::$kind,
            unit: FigureUnit::$unit,
            text: const { concat!($($text),+).trim_ascii() },
            c_word: c_word!($($place)*),
            in_table: in_table!($($place)*),
            value: $value,
        }
    };
}

macro_rules! figures {
    (
        gauges { $($(#[doc = $gtext:literal])+
            $gauge:ident: $gtype:ty, $gunit:ident , [$($gplace:tt)*];)+ }
        counters { $($(#[doc = $ctext:literal])+
            $counter:ident: $cunit:ident , [$($cplace:tt)*];)+ }
        derived { $($(#[doc = $dtext:literal])+
            $derived:ident: $dunit:ident , [$($dplace:tt)*], |$stats:ident| $value:expr;)+ }
    ) => {
        /// What a heap holds and did. Fields are read one after the other without
        /// stopping anybody, so they may be a few operations apart.
        #[derive(Debug, Clone, Copy, Default)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[doc = $gtext])+ pub $gauge: $gtype,)+
            $($(#[doc = $ctext])+ pub $counter: u64,)+
            /// Time faults took inside the engine.
            pub fault_latency: LatencyHistogram,
        }

        /// What is counted: the place of each counter in a shard.
        #[derive(Debug, Clone, Copy)]
        #[allow(non_camel_case_types)]
        pub(crate) enum Counter { $($counter),+ }

        impl Counter {
            pub(crate) const COUNT: usize = [$(Self::$counter),+].len();
        }

        /// What is read rather than counted.
        pub(crate) struct Gauges { $(pub(crate) $gauge: $gtype),+ }

        impl Stats {
            /// Puts together what was read and what `sum` knows of each counter.
            pub(crate) fn of(
                gauges: &Gauges,
                sum: impl Fn(Counter) -> u64,
                fault_latency: LatencyHistogram,
            ) -> Self {
                Self {
                    $($gauge: gauges.$gauge,)+
                    $($counter: sum(Counter::$counter),)+
                    fault_latency,
                }
            }

            $($(#[doc = $dtext])+
            #[must_use]
            pub fn $derived(&self) -> u64 {
                let $stats = self;
                $value
            })+

            /// All figures: each field but the histogram, and what is worked out of that.
            pub fn figures(&self) -> impl Iterator<Item = Figure> + use<> {
                [
                    $(figure!($gauge, Gauge, $gunit, [$($gplace)*], [$($gtext)+],
                        self.$gauge as u64),)+
                    $(figure!($counter, Counter, $cunit, [$($cplace)*], [$($ctext)+],
                        self.$counter),)+
                    $(figure!($derived, Gauge, $dunit, [$($dplace)*], [$($dtext)+],
                        self.$derived()),)+
                ]
                .into_iter()
            }
        }

        /// What `figures` says of each field, taken from the fields themselves.
        #[cfg(test)]
        fn fields(stats: &Stats) -> Vec<(&'static str, u64)> {
            vec![
                $((stringify!($gauge), stats.$gauge as u64),)+
                $((stringify!($counter), stats.$counter),)+
                $((stringify!($derived), stats.$derived()),)+
            ]
        }

        /// Each field another number.
        #[cfg(test)]
        fn numbered() -> Stats {
            let mut next = 0;
            let mut number = || { next += 1; next };
            Stats {
                $($gauge: number() as $gtype,)+
                $($counter: number(),)+
                fault_latency: LatencyHistogram::default(),
            }
        }
    };
}

figures! {
    gauges {
        /// Bytes the program has allocated and not freed.
        allocated_bytes: usize, Bytes, [c 0];
        /// Bytes of ghost pages mapped now; never above the limit, but for pages
        /// counted in `overdrafts`.
        resident_bytes: usize, Bytes, [c 1];
        /// Most bytes that may be mapped.
        resident_limit_bytes: usize, Bytes, [c 2];
        /// Compressed pages in the store, copies of resident pages included.
        stored_pages: usize, Pages, [c 3];
        /// Resident pages that keep a compressed copy, in the store or in the file:
        /// evicting one of them again costs no compression.
        kept_copies: usize, Pages, [];
        /// Compressed size of the pages in the store, bytes.
        store_data_bytes: usize, Bytes, [c 4];
        /// Memory the store holds from the kernel, bytes.
        store_held_bytes: usize, Bytes, [c 5];
        /// Page words, resident sets, slab descriptors and the tables of the file,
        /// bytes.
        metadata_bytes: usize, Bytes, [c 6];
        /// Pages in the file, copies of resident pages included.
        file_pages: usize, Pages, [c 25];
        /// Compressed size of the pages in the file, bytes.
        file_data_bytes: u64, Bytes, [c 26];
        /// What the file takes on its disk, bytes.
        file_bytes: u64, Bytes, [c 27];
        /// Pages stored as they are because they do not compress.
        raw_pages: usize, Pages, [c 7];
        /// Bound on everything the process takes, bytes; 0 where there is none.
        process_bound_bytes: usize, Bytes, [];
        /// Most that the process was seen to take under that bound, bytes.
        process_peak_bytes: usize, Bytes, [];
        /// Uncompressed pages at that moment, bytes.
        peak_resident_bytes: usize, Bytes, [];
        /// Compressed pages at that moment, bytes.
        peak_stored_bytes: usize, Bytes, [];
        /// Copies of uncompressed pages at that moment, bytes.
        peak_copies_bytes: usize, Bytes, [];
        /// Tables at that moment, bytes.
        peak_tables_bytes: usize, Bytes, [];
        /// What was not the heap's at that moment, bytes.
        peak_ordinary_bytes: usize, Bytes, [];
        /// Most that the process would have been seen to take had all pages been
        /// uncompressed, bytes; pages of one repeated value that are away do not count.
        /// 0 where there is no bound.
        plain_peak_bytes: usize, Bytes, [];
        /// Share of its own time and of that in faults that the program may spend in faults,
        /// as it was asked for, millionths; 0 where none was.
        slowdown_asked_ppm: u64, Millionths, [];
        /// The share that it spent so far. Own time is the user time of all threads, less
        /// that of the heap's background thread: what fault handlers and GhostMem's other
        /// threads compute counts as the program's.
        slowdown_reached_ppm: u64, Millionths, [];
        /// A call that protects pages, made by a faulting thread, lately, beside what each
        /// page takes, nanoseconds.
        faulting_call_ns: u64, Nanoseconds, [];
        /// The same made by the background thread, nanoseconds.
        background_call_ns: u64, Nanoseconds, [];
        /// A store to a protected page, lately, nanoseconds.
        opening_ns: u64, Nanoseconds, [];
    }
    counters {
        /// Pages moved from memory to the file.
        pages_spilled: Pages, [c 28];
        /// Pages that were touched while they were being moved to the file, and stayed.
        spills_in_vain: Pages, [c 29];
        /// Pages read from the file, for a fault or ahead of one.
        spilled_reads: Pages, [c 30];
        /// Reads of a page from the file that failed.
        spilled_read_errors: Events, [c 31 table];
        /// Batches of pages that the file did not take: it was full, or failed.
        spill_write_errors: Events, [c 32];
        /// Waits, of up to 2 ms each, of a fault that had to evict while the file
        /// was behind.
        spill_waits: Events, [c 33];
        /// Pages evicted that were one repeated value and took no slot.
        same_filled_pages: Pages, [c 8];
        /// Pages evicted that were stored as they are.
        raw_pages_evicted: Pages, [];
        /// Faults that put a page in place.
        faults: Events, [c 9];
        /// Faults on pages that had been evicted, among `faults`.
        refaults: Events, [c 10];
        /// Faults on pages that had left just before, within a thirty-second of a turnover
        /// of what may be resident, among `refaults`.
        early_refaults: Events, [];
        /// Faults that found another thread at work on the page.
        fault_races: Events, [];
        /// First stores to pages that were clean.
        write_faults: Events, [c 11];
        /// Stores to written pages that were protected and not leaving: they lay between
        /// two victims, or an eviction of theirs was given up.
        opened_between: Events, [];
        /// Calls that protected pages to be evicted.
        protect_calls: Events, [];
        /// Written pages that such calls protected although they stay: they lay between
        /// two victims.
        protected_between: Pages, [];
        /// Times that evicting went from the background thread to the faulting threads,
        /// or back, as that costs the program less.
        evictor_changes: Events, [];
        /// Nanoseconds that faults took inside the engine.
        fault_ns: Nanoseconds, [];
        /// Pages evicted without compressing them: their copy was still good.
        evictions_clean: Pages, [c 12];
        /// Pages evicted by compressing them.
        evictions_dirty: Pages, [c 13];
        /// Pages that were kept writable beside their copy, and were found unchanged by
        /// comparing when they were evicted; `evictions_clean` has them too.
        verified_unchanged: Pages, [];
        /// The same that had changed, and were compressed.
        verified_changed: Pages, [];
        /// Evictions a touch cancelled.
        evictions_cancelled: Pages, [c 14];
        /// Copies of clean pages given up to make room in the store.
        copies_shed: Pages, [];
        /// Pages restored ahead of a touch.
        readahead_pages: Pages, [c 15];
        /// Pages restored ahead of a touch whose run went on past them.
        readahead_hits: Pages, [c 16];
        /// Times a faulting thread had to evict for itself.
        direct_reclaims: Events, [c 17];
        /// Frames taken beyond the limit because a thread could not go on
        /// otherwise.
        overdrafts: Pages, [c 18 table];
        /// Looks that found the process over its bound, as memory that is not the heap's
        /// grew faster than the heap made room, or that could not see what it takes.
        bound_overruns: Events, [table];
        /// Nanoseconds spent compressing.
        compress_ns: Nanoseconds, [c 19];
        /// Pages compressed in that time.
        compressed_pages: Pages, [c 20];
        /// Nanoseconds spent decompressing, of sampled pages.
        decompress_ns: Nanoseconds, [c 21];
        /// Pages decompressed in that time.
        decompress_samples: Pages, [c 22];
    }
    derived {
        /// Time faults took inside the engine, median, nanoseconds.
        fault_p50_ns: Nanoseconds, [c 23], |stats| stats.fault_latency.percentile(50.0);
        /// Time faults took inside the engine, 99th percentile, nanoseconds.
        fault_p99_ns: Nanoseconds, [c 24], |stats| stats.fault_latency.percentile(99.0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_name_stands_for_one_figure() {
        let figures: Vec<Figure> = Stats::default().figures().collect();
        let names: BTreeSet<&str> = figures.iter().map(|figure| figure.name).collect();
        assert_eq!(names.len(), figures.len());
        for figure in figures {
            assert_eq!(figure.c_name.to_str(), Ok(figure.name));
        }
    }

    #[test]
    fn the_iterator_says_what_the_fields_hold() {
        let mut stats = numbered();
        let metrics = crate::parts::metrics::Metrics::new(2).unwrap();
        for ns in [100, 100, 10_000] {
            metrics.record_latency(ns);
        }
        stats.fault_latency = metrics.latency();
        let said: Vec<_> = stats.figures().map(|f| (f.name, f.value)).collect();
        assert_eq!(said, fields(&stats));
        let values: BTreeSet<u64> = said.iter().map(|(_, value)| *value).collect();
        assert_eq!(values.len(), said.len(), "{said:?}");
    }

    #[test]
    fn units_stand_last_in_names_and_texts_are_sentences() {
        for figure in Stats::default().figures() {
            let suffix = |end| figure.name.ends_with(end);
            assert_eq!(suffix("_ns"), figure.unit == FigureUnit::Nanoseconds);
            assert_eq!(suffix("_ppm"), figure.unit == FigureUnit::Millionths);
            assert_eq!(suffix("_bytes"), figure.unit == FigureUnit::Bytes);
            assert!(figure.text.ends_with('.'), "{figure:?}");
            assert!(!figure.text.contains("  "), "{figure:?}");
        }
    }

    #[test]
    fn words_of_the_c_structure_are_given_once_and_without_gaps() {
        let mut words: Vec<usize> = Stats::default()
            .figures()
            .filter_map(|f| f.c_word)
            .collect();
        words.sort_unstable();
        assert_eq!(words, (0..words.len()).collect::<Vec<_>>());
    }
}
