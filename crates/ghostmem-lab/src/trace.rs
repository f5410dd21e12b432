//! Traces: sequences of touches, the same on every machine. Those of the bench
//! are drawn by the same functions that the bench itself draws from.

use std::borrow::Cow;
use std::ops::Range;

use crate::rng::{Rng, Zipf};

/// One access to one page by one thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch(u32);

const PAGE_BITS: u32 = 28;
/// Pages of a trace are below this.
pub const PAGES_MAX: u32 = 1 << PAGE_BITS;

impl Touch {
    /// A read. `page` below 2^28, `thread` below 8.
    #[must_use]
    pub const fn read(page: u32, thread: u32) -> Self {
        Self((page & ((1 << PAGE_BITS) - 1)) | (thread & 7) << PAGE_BITS)
    }

    /// A write.
    #[must_use]
    pub const fn write(page: u32, thread: u32) -> Self {
        Self(Self::read(page, thread).0 | 1 << 31)
    }

    /// The page.
    #[must_use]
    pub const fn page(self) -> u32 {
        self.0 & ((1 << PAGE_BITS) - 1)
    }

    /// The thread.
    #[must_use]
    pub const fn thread(self) -> u32 {
        self.0 >> PAGE_BITS & 7
    }

    /// Whether it is a write.
    #[must_use]
    pub const fn is_write(self) -> bool {
        self.0 >> 31 == 1
    }
}

/// A named sequence of touches, a part of which is measured.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Name in tables.
    pub name: Cow<'static, str>,
    /// Pages are below this number.
    pub pages: u32,
    /// How many of them there are: what limits are shares of.
    pub distinct: u32,
    /// The touches, in order.
    pub touches: Vec<Touch>,
    /// Which of them count; what comes before is history.
    pub measured: Range<usize>,
}

impl Trace {
    /// The measured part and as much of what comes before as `warm` touches.
    #[must_use]
    pub fn without_history(&self, warm: usize) -> Self {
        let start = self.measured.start.saturating_sub(warm);
        Self {
            name: self.name.clone(),
            pages: self.pages,
            distinct: self.distinct,
            touches: self.touches[start..].to_vec(),
            measured: self.measured.start - start..self.measured.end - start,
        }
    }

    fn new(name: &'static str, pages: u32, touches: Vec<Touch>) -> Self {
        let measured = touches.len() / 3..touches.len();
        Self {
            name: name.into(),
            pages,
            distinct: pages,
            touches,
            measured,
        }
    }
}

/// Exponent of the bench's zipf workload.
pub const BENCH_THETA: f64 = 0.99;

/// The workloads of `ghostmem-bench zram`, in the order they run there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BenchPart {
    /// Sequential reads, each thread its own part.
    SeqRead,
    /// Uniformly random reads.
    RandomRead,
    /// Uniformly random writes.
    RandomWrite,
    /// zipf(0.99) reads, ranks scattered over the pages.
    ZipfRead,
}

impl BenchPart {
    /// All, in order.
    pub const ALL: [Self; 4] = [
        Self::SeqRead,
        Self::RandomRead,
        Self::RandomWrite,
        Self::ZipfRead,
    ];
}

/// What one process of `ghostmem-bench zram` touches up to the end of `part`
/// with `threads` threads (1, or 2 after everything with 1): the fill, each
/// workload with its untimed start, and after each the pass that verifies all
/// pages. The timed part of the last workload is measured.
#[must_use]
pub fn bench(name: &'static str, pages: u32, threads: u32, part: BenchPart) -> Trace {
    let mut touches: Vec<Touch> = (0..pages).map(|page| Touch::write(page, 0)).collect();
    let mut measured = 0..0;
    'all: for running in 1..=threads {
        for pattern in BenchPart::ALL {
            // The pass that verifies.
            touches.extend((0..pages).map(|page| Touch::read(page, 0)));
            let start = touches.len();
            let orders: Vec<_> = (0..running)
                .map(|thread| bench_order(pattern, pages, running, thread, 1.0))
                .collect();
            let warm = orders[0].1 * running as usize;
            for step in 0..orders[0].0.len() {
                for (thread, (order, _)) in (0..).zip(&orders) {
                    touches.push(match pattern {
                        BenchPart::RandomWrite => Touch::write(order[step], thread),
                        _ => Touch::read(order[step], thread),
                    });
                }
            }
            measured = start + warm..touches.len();
            if running == threads && pattern == part {
                break 'all;
            }
        }
    }
    Trace {
        name: name.into(),
        pages,
        distinct: pages,
        touches,
        measured,
    }
}

/// The pages one thread of `threads` touches in one workload of the bench, and
/// how many of them come first, untimed. `scale` multiplies the touches. The
/// bench itself takes its orders from here.
#[must_use]
pub fn bench_order(
    part: BenchPart,
    pages: u32,
    threads: u32,
    thread: u32,
    scale: f64,
) -> (Vec<u32>, usize) {
    // A law needs time to show: by zipf(0.99), the last page of the quarter that
    // is most worth keeping is touched once while all are touched three times
    // on average.
    let (per_page, warm) = match part {
        BenchPart::RandomRead | BenchPart::RandomWrite => (1.0, 0.5),
        BenchPart::SeqRead => (2.0, 1.0),
        BenchPart::ZipfRead => (8.0, 8.0),
    };
    let share = |per_page: f64| {
        let touches = f64::from(pages) * per_page * scale;
        (touches / f64::from(threads)).max(64.0) as usize
    };
    let (timed, warm) = (share(per_page), share(warm));
    let mut rng = Rng::new((u64::from(threads) << 8) + u64::from(thread));
    let all = 0..warm + timed;
    let order = match part {
        BenchPart::SeqRead => {
            // The end of the untimed part leads into the timed one.
            let share = pages / threads;
            let first = thread * share;
            all.map(|touch| first + (touch % share.max(1) as usize) as u32)
                .collect()
        }
        BenchPart::ZipfRead => {
            let ranks = Rng::new(0x7a69_7066).permutation(pages);
            let zipf = Zipf::new(u64::from(pages), BENCH_THETA);
            all.map(|_| ranks[zipf.sample(&mut rng) as usize]).collect()
        }
        BenchPart::RandomRead | BenchPart::RandomWrite => {
            all.map(|_| rng.below(u64::from(pages)) as u32).collect()
        }
    };
    (order, warm)
}

/// Draws ranks by a zipf law with any exponent, exactly: a binary search in the
/// summed frequencies.
struct Law(Vec<f64>);

impl Law {
    fn new(count: u32, theta: f64) -> Self {
        let mut sum = 0.0;
        Self(
            (1..=count)
                .map(|rank| {
                    sum += f64::from(rank).powf(-theta);
                    sum
                })
                .collect(),
        )
    }

    fn sample(&self, rng: &mut Rng) -> u32 {
        let total = self.0.last().copied().unwrap_or(0.0);
        let at = rng.unit() * total;
        self.0.partition_point(|&sum| sum <= at) as u32
    }
}

/// Touches per page of a trace.
const TOUCHES_PER_PAGE: u32 = 16;

/// A zipf law over a random order of all pages.
#[must_use]
pub fn zipf(name: &'static str, pages: u32, theta: f64) -> Trace {
    let mut rng = Rng::new(11);
    let ranks = rng.permutation(pages);
    let law = Law::new(pages, theta);
    let touches =
        (0..pages * TOUCHES_PER_PAGE).map(|_| Touch::read(ranks[law.sample(&mut rng) as usize], 0));
    Trace::new(name, pages, touches.collect())
}

/// All pages equally often.
#[must_use]
pub fn uniform(pages: u32) -> Trace {
    let mut rng = Rng::new(12);
    let touches =
        (0..pages * TOUCHES_PER_PAGE / 2).map(|_| Touch::read(rng.below(pages.into()) as u32, 0));
    Trace::new("uniform", pages, touches.collect())
}

/// All pages in order, over and over.
#[must_use]
pub fn sequential_loop(pages: u32) -> Trace {
    let touches = (0..pages * TOUCHES_PER_PAGE / 2).map(|touch| Touch::read(touch % pages, 0));
    Trace::new("loop", pages, touches.collect())
}

/// A tenth of the pages, scattered, touched at random, and now and then one
/// pass over all pages in order.
#[must_use]
pub fn hot_and_scans(pages: u32) -> Trace {
    let mut rng = Rng::new(13);
    let hot = &rng.permutation(pages)[..pages as usize / 10];
    let mut touches = Vec::new();
    for _ in 0..6 {
        touches.extend(
            (0..pages * 2).map(|_| Touch::read(hot[rng.below(hot.len() as u64) as usize], 0)),
        );
        touches.extend((0..pages).map(|page| Touch::read(page, 0)));
    }
    Trace::new("hot and scans", pages, touches)
}

/// A hot tenth gets nine of ten touches, all pages the rest; the tenth moves
/// four times.
#[must_use]
pub fn moving_hot(pages: u32) -> Trace {
    let mut rng = Rng::new(14);
    let mut touches = Vec::new();
    for _ in 0..5 {
        let hot = &rng.permutation(pages)[..pages as usize / 10];
        touches.extend((0..pages * 3).map(|_| {
            let page = match rng.below(10) {
                0 => rng.below(pages.into()) as u32,
                _ => hot[rng.below(hot.len() as u64) as usize],
            };
            Touch::read(page, 0)
        }));
    }
    Trace::new("moving hot set", pages, touches)
}

/// Searches in a tree of 16 children a node, a page a node, scattered: one
/// random path from the root at a time.
#[must_use]
pub fn tree(pages: u32) -> Trace {
    let mut rng = Rng::new(15);
    let place = rng.permutation(pages);
    let mut touches = Vec::new();
    while touches.len() < (pages * TOUCHES_PER_PAGE) as usize {
        let (mut first, mut width) = (0, 1);
        let mut at = rng.below(1 << 32);
        while first < pages {
            let nodes = width.min(pages - first);
            let node = first + (at % u64::from(nodes)) as u32;
            touches.push(Touch::read(place[node as usize], 0));
            at /= 3;
            first += nodes;
            width *= 16;
        }
    }
    Trace::new("tree", pages, touches)
}

/// Two programs by turns: zipf(1.1) over one half of the pages, zipf(0.7) over
/// the other.
#[must_use]
pub fn two_zipfs(pages: u32) -> Trace {
    let mut rng = Rng::new(16);
    let ranks = rng.permutation(pages);
    let half = pages / 2;
    let (steep, flat) = (Law::new(half, 1.1), Law::new(half, 0.7));
    let touches = (0..pages * TOUCHES_PER_PAGE).map(|touch| {
        let rank = match touch % 2 {
            0 => steep.sample(&mut rng),
            _ => half + flat.sample(&mut rng),
        };
        Touch::read(ranks[rank as usize], 0)
    });
    Trace::new("two zipfs", pages, touches.collect())
}

/// A program that allocates and forgets: fresh pages written in order, each
/// touched again a few times soon after, and a zipf(0.9) over an eighth of the
/// pages beside it.
#[must_use]
pub fn allocation(pages: u32) -> Trace {
    let mut rng = Rng::new(17);
    let kept = pages / 8;
    let ranks = rng.permutation(kept);
    let law = Law::new(kept, 0.9);
    let mut touches = Vec::new();
    for page in kept..pages {
        touches.push(Touch::write(page, 0));
        for _ in 0..4 {
            // Younger pages are likelier: 1/16 per step back on average.
            let back = (-(1.0 - rng.unit()).ln() * 64.0) as u32;
            touches.push(Touch::read(page.saturating_sub(back).max(kept), 0));
            touches.push(Touch::read(ranks[law.sample(&mut rng) as usize], 0));
        }
    }
    Trace::new("allocation", pages, touches)
}

/// Counted objects: a dictionary of a scripting language, looked up by a zipf(0.99) law.
/// Each look-up reads a slot of the table, and stores to the key and to the value, whose
/// references are counted. Eight objects share a page, whatever their ranks.
#[must_use]
pub fn counted(pages: u32) -> Trace {
    const OBJECTS: u32 = 8;
    let mut rng = Rng::new(18);
    let table = pages / 8;
    let (keys, values) = (table, table + (pages - table) / 2);
    let count = (values - keys) * OBJECTS;
    let ranks = rng.permutation(count);
    let slots = rng.permutation(count);
    let law = Law::new(count, 0.99);
    let mut touches: Vec<Touch> = (0..pages).map(|page| Touch::write(page, 0)).collect();
    while touches.len() < (pages * TOUCHES_PER_PAGE) as usize {
        let object = ranks[law.sample(&mut rng) as usize];
        let slot = slots[object as usize] % table;
        touches.push(Touch::read(slot, 0));
        touches.push(Touch::write(keys + object / OBJECTS, 0));
        touches.push(Touch::write(values + object / OBJECTS, 0));
    }
    Trace::new("counted objects", pages, touches)
}

/// A database in memory, as SQLite keeps one: blocks of a page and a quarter, whose end is
/// counted up and down at each use, and whose contents are read. It is filled, indexed,
/// read in the order of the index, asked for single rows, and changed here and there.
#[must_use]
pub fn database(pages: u32) -> Trace {
    const INNER: u32 = 64;
    let blocks = (pages - 1) / 5 * 4;
    // Nodes above the leaves come first; then the index, a fifth; then the table.
    let inner = (blocks / INNER).max(1);
    let index = inner..inner + (blocks - inner) / 5;
    let table = index.end..blocks;
    let mut rng = Rng::new(19);
    let mut touches = Vec::new();
    let mut uses = |block: u32, write: bool| {
        let first = block * 5 / 4;
        touches.push(Touch::write(first + 1, 0));
        touches.push(match write {
            true => Touch::write(first, 0),
            false => Touch::read(first, 0),
        });
    };
    let above = |leaf: u32| leaf / INNER % inner;
    for leaf in table.clone() {
        uses(above(leaf), true);
        uses(leaf, true);
    }
    for leaf in table.clone() {
        uses(leaf, false);
        let at = u64::from(leaf - table.start) * u64::from(index.end - index.start);
        uses(
            index.start + (at / u64::from(table.end - table.start)) as u32,
            true,
        );
    }
    let mut row = |uses: &mut dyn FnMut(u32, bool), entry: u32, write: bool| {
        let leaf = table.start + rng.below(u64::from(table.end - table.start)) as u32;
        for (block, write) in [
            (above(entry), false),
            (entry, false),
            (above(leaf), false),
            (leaf, write),
        ] {
            uses(block, write);
        }
    };
    let rows = 6 * blocks / 10;
    for step in 0..rows {
        let at = u64::from(step) * u64::from(index.end - index.start) / u64::from(rows);
        row(&mut uses, index.start + at as u32, false);
    }
    let mut order = Rng::new(20);
    for step in 0..rows {
        let entry = index.start + order.below(u64::from(index.end - index.start)) as u32;
        row(&mut uses, entry, step % 40 == 3);
    }
    for leaf in table.clone() {
        uses(leaf, false);
    }
    Trace::new("database", pages, touches)
}

/// All traces of the lab but the bench's own, over `pages` pages.
#[must_use]
pub fn all(pages: u32) -> Vec<Trace> {
    vec![
        zipf("zipf(0.8)", pages, 0.8),
        zipf("zipf(0.99)", pages, 0.99),
        zipf("zipf(1.2)", pages, 1.2),
        two_zipfs(pages),
        uniform(pages),
        sequential_loop(pages),
        hot_and_scans(pages),
        moving_hot(pages),
        tree(pages),
        allocation(pages),
        counted(pages),
        database(pages),
    ]
}
