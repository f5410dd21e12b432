//! As little memory as a program bears: the resident limit follows the share of its time
//! that faults take.
//!
//! ```text
//!             time in faults            of a window of the program's own time, and of
//!   share = ----------------------      the time since the last look
//!            own time + time in faults
//!
//!   both above the share asked for   the limit grows at once, the more the further above
//!   both below it                    it shrinks by up to 5 % in 100 ms, from what is resident
//!   one of each                      it stays: what is over does not count twice, and what
//!                                    has just begun is not answered by shrinking
//! ```
//! Time here is the program's own. A program that sleeps shows nothing and keeps what it
//! has; one that runs for 10 ms a second shrinks a hundredth as fast. The window is long
//! enough to see what a shrink costs: pages that left come back when they are touched.
//!
//! What faults took less than they might have is credit, what they took more is debt. The
//! share aimed at is a little higher with credit and lower with debt, so that the share of
//! the whole run is the one asked for. Little credit is kept: an hour without faults does
//! not buy a minute of them.
//!
//! Where more is resident than the limit says the last shrink is not met yet: some pages
//! cannot leave, or nobody came to evict them. A further one would bind nothing now and
//! leave no frame for a fault later, so the limit waits.
//!
//! Where the share rises steeply as the limit falls, shrinking goes too far. Each time it
//! did it goes on more slowly from there ([`Slowdown::look`], `gain`).

/// Own time of the window that the share is looked at in.
const WINDOW_NS: f64 = 400e6;
/// Less time than this since the last look says nothing.
const LEAST_NS: u64 = 5_000_000;
/// Credit and debt change the share aimed at by a whole when they are the faults of so
/// much time.
const BALANCE_NS: f64 = 3e9;
/// Most credit, and most that is aimed at, as a part of that and of the share.
const CREDIT_MOST: f64 = 0.4;
/// Most debt, likewise.
const DEBT_MOST: f64 = 2.0;
/// Least that is aimed at, as a part of the share.
const AIM_LEAST: f64 = 0.5;
/// The limit grows by this part for each time that the share aimed at is exceeded by.
const GROWTH: f64 = 0.15;
/// And by this part at most, from one look to the next.
const GROWTH_MOST: f64 = 0.5;
/// The limit shrinks by this part in [`SHRINK_NS`] without any fault.
const SHRINK: f64 = 0.05;
const SHRINK_NS: f64 = 100e6;
/// Shrinking that went too far is slower by this factor from then on, down to
/// [`GAIN_LEAST`], and as fast as before after some [`GAIN_NS`].
const GAIN_STEP: f64 = 0.7;
const GAIN_LEAST: f64 = 0.125;
const GAIN_NS: f64 = 4e9;

/// What was counted up to a look, and what bounds the limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Time in faults so far, of all threads, nanoseconds.
    pub faults_ns: u64,
    /// Processor time that the program has computed for so far, nanoseconds.
    pub own_ns: u64,
    /// Pages that are resident.
    pub resident_pages: i64,
    /// Pages that are kept free, at most: a limit this far above what is resident binds.
    pub spare_pages: i64,
    /// Fewest pages that the limit may say.
    pub floor_pages: i64,
    /// Most pages that it may say.
    pub ceiling_pages: i64,
}

/// The resident limit of a program that is to be slowed down by a share of its time.
#[derive(Debug, Clone, Copy)]
pub struct Slowdown {
    /// The share asked for, a part of one.
    share: f64,
    /// The limit, pages; a fraction, so that small steps add up.
    limit: f64,
    /// Time in faults, and all time, that the window has in it, nanoseconds.
    window: (f64, f64),
    /// Time in faults that was not used up, nanoseconds; below zero: that was overdrawn.
    credit: f64,
    /// How fast it shrinks.
    gain: f64,
    is_over: bool,
    faults_ns: u64,
    own_ns: u64,
}

impl Slowdown {
    /// Begins at a look, for a share in millionths; nothing is limited so far.
    #[must_use]
    pub fn new(share_ppm: u32, seen: &Seen) -> Self {
        Self {
            share: f64::from(share_ppm.max(1)) / 1e6,
            limit: seen.ceiling_pages as f64,
            window: (0.0, 0.0),
            credit: 0.0,
            gain: 1.0,
            is_over: false,
            faults_ns: seen.faults_ns,
            own_ns: seen.own_ns,
        }
    }

    /// A look; the resident limit from now on, pages. `None`: the program has done too
    /// little since the last one to tell, and the limit stays.
    pub fn look(&mut self, seen: &Seen) -> Option<i64> {
        let faults = seen.faults_ns.saturating_sub(self.faults_ns);
        let own = seen.own_ns.saturating_sub(self.own_ns);
        let time = faults.saturating_add(own);
        if time < LEAST_NS {
            return None;
        }
        (self.faults_ns, self.own_ns) = (seen.faults_ns, seen.own_ns);
        let (faults, time) = (faults as f64, time as f64);
        let aim = self.aim(faults, time);
        let kept = WINDOW_NS / (WINDOW_NS + time);
        self.window = (self.window.0 * kept + faults, self.window.1 * kept + time);
        // A window that has just begun counts as half full.
        let lately = self.window.0 / self.window.1.max(WINDOW_NS / 2.0) / aim;
        let now = faults / time / aim;
        let (less, more) = (lately.min(now), lately.max(now));
        self.gain = (self.gain * (1.0 + time / GAIN_NS)).min(1.0);
        let resident = seen.resident_pages as f64;
        if less > 1.0 {
            if !self.is_over {
                self.gain = (self.gain * GAIN_STEP).max(GAIN_LEAST);
            }
            self.is_over = true;
            let growth = (GROWTH * (less - 1.0)).min(GROWTH_MOST);
            self.limit = self.limit.max(resident) * (1.0 + growth);
        } else if more < 1.0 {
            self.is_over = false;
            // A limit far above what is resident binds nothing.
            let binding = self.limit.min(resident + seen.spare_pages as f64);
            let shrink = SHRINK * self.gain * (time / SHRINK_NS).min(1.0) * (1.0 - more);
            if resident <= self.limit {
                self.limit = binding * (1.0 - shrink);
            }
        }
        let (floor, ceiling) = (seen.floor_pages as f64, seen.ceiling_pages as f64);
        self.limit = self.limit.max(floor).min(ceiling);
        Some(self.limit as i64)
    }

    /// Counts what faults took of some time; the share that is aimed at from now on.
    fn aim(&mut self, faults: f64, time: f64) -> f64 {
        let balance = self.share * BALANCE_NS;
        let credit = self.credit + self.share * time - faults;
        self.credit = credit.clamp(-DEBT_MOST * balance, CREDIT_MOST * balance);
        self.share * (1.0 + self.credit / balance).clamp(AIM_LEAST, 1.0 + CREDIT_MOST)
    }
}

/// What share of the time faults took, in millionths: `faults_ns` of that and of the
/// program's own time; 0 where there was no time.
#[must_use]
pub fn share_ppm(faults_ns: u64, own_ns: u64) -> u64 {
    let time = u128::from(faults_ns) + u128::from(own_ns);
    let share = (u128::from(faults_ns) * 1_000_000).checked_div(time);
    share.map_or(0, |share| u64::try_from(share).unwrap_or(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wall time between two looks.
    const LOOK_NS: f64 = 50e6;
    /// What a fault takes.
    const FAULT_NS: f64 = 5e3;
    const CEILING: i64 = 1 << 22;
    const FLOOR: i64 = 1024;
    const SPARE: i64 = 128;

    /// Of a second and the pages resident then.
    type Curve<'a> = &'a dyn Fn(f64, f64) -> f64;

    /// A program: how many faults it has in a millisecond of its own time at the moment
    /// `second`, with so many pages resident; and how many pages it has in all.
    struct Program<'a> {
        faults_per_ms: Curve<'a>,
        pages: &'a dyn Fn(f64) -> f64,
        /// Faults vary by this part from look to look.
        noise: f64,
    }

    /// What came of a run, look by look: second, resident pages, time in faults and own.
    struct Run(Vec<(f64, f64, f64, f64)>);

    impl Run {
        /// Share of the faults between two seconds, per cent.
        fn percent(&self, from: f64, to: f64) -> f64 {
            let part: Vec<_> = self.0.iter().filter(|l| l.0 >= from && l.0 <= to).collect();
            let (first, last) = (part[0], part[part.len() - 1]);
            let (faults, own) = (last.2 - first.2, last.3 - first.3);
            100.0 * faults / (faults + own)
        }

        /// Fewest and most resident pages between two seconds.
        fn range(&self, from: f64, to: f64) -> (f64, f64) {
            let part = self.0.iter().filter(|l| l.0 >= from && l.0 <= to);
            part.fold((f64::MAX, 0.0), |(least, most), look| {
                (look.1.min(least), look.1.max(most))
            })
        }
    }

    fn run(program: &Program<'_>, share_percent: f64, seconds: f64) -> Run {
        let seen = |faults: f64, own: f64, resident: f64| Seen {
            faults_ns: faults as u64,
            own_ns: own as u64,
            resident_pages: resident as i64,
            spare_pages: SPARE,
            floor_pages: FLOOR,
            ceiling_pages: CEILING,
        };
        let mut resident = (program.pages)(0.0);
        let mut slowdown = Slowdown::new((share_percent * 1e4) as u32, &seen(0.0, 0.0, resident));
        let mut limit = CEILING as f64;
        let (mut faults, mut own, mut second) = (0.0, 0.0, 0.0);
        let mut looks = vec![(0.0, resident, 0.0, 0.0)];
        let mut random = 1_u64;
        while second < seconds {
            // Pages come in as they are touched.
            for _ in 0..10 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(99);
                let noise = ((random >> 33) as f64 / f64::from(1_u32 << 30) - 1.0) * program.noise;
                let pages = (program.pages)(second);
                let per_ms = (program.faults_per_ms)(second, resident) * (1.0 + noise);
                let ratio = per_ms * FAULT_NS / 1e6;
                let part = LOOK_NS / 10.0;
                own += part / (1.0 + ratio);
                faults += part - part / (1.0 + ratio);
                let came = (part - part / (1.0 + ratio)) / FAULT_NS;
                resident = (resident + came).min(limit).min(pages);
            }
            second += LOOK_NS / 1e9;
            if let Some(pages) = slowdown.look(&seen(faults, own, resident)) {
                limit = pages as f64;
                resident = resident.min(limit);
            }
            looks.push((second, resident, faults, own));
        }
        Run(looks)
    }

    /// A program of 256 MiB whose pages are touched by a power law.
    fn zipf(faults: f64) -> impl Fn(f64, f64) -> f64 {
        move |_, resident| faults * (1.0 - (resident / 65536.0).min(1.0).powf(0.2))
    }

    fn steady(faults_per_ms: Curve<'_>) -> Program<'_> {
        Program {
            faults_per_ms,
            pages: &|_| 65536.0,
            noise: 0.1,
        }
    }

    fn near(percent: f64, wanted: f64, by: f64, what: &str) {
        assert!((percent - wanted).abs() <= by, "{what}: {percent} %");
    }

    #[test]
    fn the_share_is_kept_on_curves_flat_and_steep() {
        let uniform = |_: f64, resident: f64| 400.0 * (1.0 - resident / 65536.0);
        let dense = |_: f64, resident: f64| 4000.0 * (1.0 - resident / 65536.0);
        let steep = |_: f64, resident: f64| 10.0 * (30_000.0 / resident.max(1.0)).powi(8);
        let (flat, quiet) = (zipf(400.0), zipf(100.0));
        let curves: [(&str, Curve<'_>); 5] = [
            ("zipf", &flat),
            ("a quiet zipf", &quiet),
            ("uniform", &uniform),
            ("uniform and dense", &dense),
            ("steep", &steep),
        ];
        for (name, curve) in curves {
            let run = run(&steady(curve), 5.0, 30.0);
            near(run.percent(0.0, 30.0), 5.0, 1.0, name);
            near(run.percent(15.0, 30.0), 5.0, 0.5, name);
            // It stays where it is: no oscillation.
            let (least, most) = run.range(15.0, 30.0);
            assert!(most - least < most / 10.0, "{name}: {least} to {most}");
            assert!(most < 65536.0, "{name}");
        }
    }

    #[test]
    fn small_and_large_shares_are_kept_too() {
        let flat = zipf(400.0);
        for share in [0.5, 1.0, 10.0] {
            let run = run(&steady(&flat), share, 40.0);
            near(run.percent(20.0, 40.0), share, share / 5.0, "zipf");
        }
        // At half of the time nothing is left to put away.
        let run = run(&steady(&flat), 50.0, 60.0);
        assert!(run.percent(0.0, 60.0) < 60.0);
        assert!(run.range(50.0, 60.0).1 < 4.0 * FLOOR as f64);
    }

    #[test]
    fn noise_moves_the_limit_little() {
        let flat = zipf(400.0);
        let noisy = Program {
            noise: 0.8,
            ..steady(&flat)
        };
        let run = run(&noisy, 5.0, 30.0);
        near(run.percent(0.0, 30.0), 5.0, 1.0, "noise");
        let (least, most) = run.range(15.0, 30.0);
        assert!(most - least < most / 6.0, "{least} to {most}");
    }

    #[test]
    fn a_cliff_is_met_seldom_and_left_at_once() {
        let cliff = |_: f64, resident: f64| if resident < 20_000.0 { 300.0 } else { 0.2 };
        let run = run(&steady(&cliff), 5.0, 60.0);
        assert!(run.percent(0.0, 60.0) < 5.5, "{}", run.percent(0.0, 60.0));
        let (least, most) = run.range(30.0, 60.0);
        assert!(least > 19_000.0 && most < 23_000.0, "{least} to {most}");
    }

    #[test]
    fn a_program_without_any_fault_shrinks_to_the_floor_slowly() {
        let run = run(&steady(&|_, _| 0.0), 5.0, 30.0);
        let (least, _) = run.range(0.0, 0.1);
        assert!(least > 60_000.0, "{least}");
        // Less than half in a second.
        assert!(run.range(0.0, 1.0).0 > 33_000.0);
        assert_eq!(run.range(29.0, 30.0), (FLOOR as f64, FLOOR as f64));
        near(run.percent(0.0, 30.0), 0.0, 0.0, "no fault");
    }

    #[test]
    fn a_program_of_two_seconds_is_not_slowed_down_more() {
        let (flat, quiet) = (zipf(400.0), zipf(100.0));
        for curve in [&flat as Curve<'_>, &quiet] {
            let run = run(&steady(curve), 5.0, 2.0);
            let percent = run.percent(0.0, 2.0);
            assert!(percent > 0.2 && percent < 6.0, "{percent} %");
        }
    }

    #[test]
    fn a_working_set_that_suddenly_grows_gets_its_room_at_once() {
        let pages = |second: f64| if second < 10.0 { 20_000.0 } else { 200_000.0 };
        let faults = |second: f64, resident: f64| 400.0 * (1.0 - resident / pages(second));
        let jump = Program {
            faults_per_ms: &faults,
            pages: &pages,
            noise: 0.1,
        };
        let run = run(&jump, 5.0, 40.0);
        // As many as a program without a limit brings in, but for a look or two.
        let (_, after) = run.range(10.0, 10.5);
        assert!(after > 55_000.0, "{after}");
        let (_, after) = run.range(10.0, 12.0);
        assert!(after > 150_000.0, "{after}");
        near(run.percent(20.0, 40.0), 5.0, 1.0, "after the jump");
    }

    #[test]
    fn what_phases_overdraw_is_paid_back() {
        let pages = |second: f64| {
            if second as u64 / 5 % 2 == 1 {
                65_536.0
            } else {
                20_000.0
            }
        };
        let faults = |second: f64, resident: f64| 200.0 * (1.0 - resident / pages(second)).max(0.0);
        let phases = Program {
            faults_per_ms: &faults,
            pages: &pages,
            noise: 0.1,
        };
        let run = run(&phases, 5.0, 60.0);
        near(run.percent(0.0, 60.0), 5.0, 1.5, "phases");
    }

    #[test]
    fn a_program_that_sleeps_keeps_what_it_has() {
        let mut seen = Seen {
            resident_pages: 65_536,
            spare_pages: SPARE,
            floor_pages: FLOOR,
            ceiling_pages: CEILING,
            ..Seen::default()
        };
        let mut slowdown = Slowdown::new(50_000, &seen);
        for _ in 0..1000 {
            // A timer that does next to nothing.
            seen.own_ns += 4_000;
            assert_eq!(slowdown.look(&seen), None);
        }
        seen.own_ns += LEAST_NS;
        let limit = slowdown.look(&seen).unwrap();
        assert!(limit > 64_000, "{limit}");
    }

    #[test]
    fn pages_that_cannot_leave_hold_the_limit() {
        let mut seen = Seen {
            resident_pages: 65_536,
            spare_pages: SPARE,
            floor_pages: FLOOR,
            ceiling_pages: CEILING,
            ..Seen::default()
        };
        let mut slowdown = Slowdown::new(50_000, &seen);
        let mut compute = |seen: &mut Seen| {
            seen.own_ns += 50_000_000;
            slowdown.look(seen).unwrap()
        };
        let first = compute(&mut seen);
        assert!(first < 65_536 && first > 60_000, "{first}");
        for _ in 0..200 {
            assert_eq!(compute(&mut seen), first);
        }
        // They have left at last.
        seen.resident_pages = first;
        assert!(compute(&mut seen) < first);
    }

    #[test]
    fn the_limit_stays_between_floor_and_ceiling() {
        let mut seen = Seen {
            resident_pages: 500,
            spare_pages: SPARE,
            floor_pages: FLOOR,
            ceiling_pages: 2000,
            ..Seen::default()
        };
        let mut slowdown = Slowdown::new(50_000, &seen);
        seen.own_ns += 50_000_000;
        assert_eq!(slowdown.look(&seen), Some(FLOOR));
        for _ in 0..100 {
            seen.faults_ns += 40_000_000;
            seen.own_ns += 10_000_000;
            slowdown.look(&seen).unwrap();
        }
        assert_eq!(slowdown.limit, 2000.0);
        // One that was lowered meanwhile holds at once.
        seen.ceiling_pages = 700;
        seen.own_ns += 50_000_000;
        assert_eq!(slowdown.look(&seen), Some(700));
    }

    #[test]
    fn shares_are_of_both_times_together() {
        assert_eq!(share_ppm(0, 0), 0);
        assert_eq!(share_ppm(5, 95), 50_000);
        assert_eq!(share_ppm(7, 0), 1_000_000);
        assert_eq!(share_ppm(u64::MAX, u64::MAX), 500_000);
    }
}
