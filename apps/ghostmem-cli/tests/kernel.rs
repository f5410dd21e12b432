//! Programs that tell the kernel's answers from ours, under `ghostmem run`.
//!
//! Each C program checks itself and prints "ok"; each runs by itself first, so that what this
//! machine's kernel does is what is asked for, and then on every backend that works here.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use common::{assert_ok, backends, compile, scratch};

mod common;

/// Bytes the programs touch to push everything else out: more than the limits below.
const PRESSURE: &str = "20000000";

/// Runs a program natively, then under each backend with a limit and `more` arguments.
fn check(name: &str, limit: &str, more: &[&str]) {
    check_with(&[], name, limit, more);
}

/// The same, with `options` of `ghostmem run`.
fn check_with(options: &[&str], name: &str, limit: &str, more: &[&str]) {
    check_as(options, name, limit, &[], more);
}

/// The same, with arguments that it gets natively and under each backend, too.
fn check_as(options: &[&str], name: &str, limit: &str, always: &[&str], more: &[&str]) {
    check_under(&["--limit", limit], options, name, always, more);
}

/// The same, under another bound than a limit.
fn check_under(bound: &[&str], options: &[&str], name: &str, always: &[&str], more: &[&str]) {
    let folder = scratch(name);
    let built = folder.join(name);
    compile(&[], format!("{name}.c"), &built, &[]);
    let arguments = [folder.to_str().unwrap(), PRESSURE];
    let run = |command: &mut Command, more: &[&str], what: &str| {
        let output = command
            .args(arguments)
            .args(always)
            .args(more)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_ok(&output, what);
    };
    run(&mut Command::new(&built), &[], "natively");
    for backend in backends() {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ghostmem"));
        command.arg("run").args(bound).args(["--backend", backend]);
        command.args(options).arg("--");
        command.env("BACKEND", backend);
        // The kernel waits for a monitor's pages: there, nothing is stood in for.
        let more = if backend == "monitor" { &[] } else { more };
        run(command.arg(&built), more, backend);
    }
}

#[test]
fn what_points_on_is_found_and_nothing_else_is_written() {
    check("pointers", "4M", &[]);
}

#[test]
fn addresses_that_the_kernel_would_refuse_get_efault() {
    check("refused", "4M", &[]);
}

/// Sets, addresses and names whose lengths say more than there is; lengths that the kernel
/// refuses.
#[test]
fn lengths_that_say_more_than_there_is_are_the_kernels_to_judge() {
    check("lengths", "4M", &[]);
}

/// A thread's number is cleared at its end, and the line of arguments read, in pages that
/// were put away.
#[test]
fn what_the_kernel_uses_by_itself_is_there() {
    check("later", "4M", &[]);
}

/// Calls that are made for other processes, on the process itself.
#[test]
fn calls_for_other_processes_work_on_the_process_itself() {
    check_with(&["--mmap=64K"], "ourselves", "4M", &[]);
}

/// Requests whose answer is longer than their number says, the kernel's log, message queues,
/// semaphores, segments, keys: right, and not a byte beside.
#[test]
fn what_the_kernel_writes_stays_in_its_place() {
    check("written", "4M", &[]);
}

#[test]
fn records_of_several_writers_come_whole() {
    check("appends", "4M", &[]);
}

/// Handlers, the mask and pages are the parent's own after `system`, `popen`, `posix_spawn`,
/// `vfork`, and a clone that clears the handlers.
#[test]
fn children_leave_handlers_masks_and_pages_alone() {
    check("afterchild", "4M", &[]);
}

#[test]
fn holds_end_with_their_reason() {
    check("held", "16M", &[]);
}

#[test]
fn fault_signals_are_blocked_and_wait_as_the_kernel_has_it() {
    check("sigstate", "4M", &[]);
}

#[test]
fn children_on_stacks_from_malloc_have_their_memory() {
    check("ownstacks", "4M", &[]);
}

#[test]
fn forks_on_stacks_in_ghost_memory_have_two_stacks() {
    check_with(&["--mmap=64K"], "forkstacks", "2M", &[]);
}

#[test]
fn children_on_the_parents_table_of_descriptors_leave_it_its_own() {
    check("sharing", "4M", &[]);
    let spill = scratch("sharing-spill");
    let file = format!("--spill={}", spill.display());
    check_with(&[&file, "--spill-store=1M"], "sharing", "4M", &[]);
}

#[test]
fn advice_about_memory_gets_the_answer_of_the_kernel() {
    check("advice", "4M", &[]);
}

#[test]
fn every_number_below_the_limit_is_the_programs() {
    check("numbers", "4M", &[]);
}

#[test]
fn what_no_address_space_holds_is_refused_at_once() {
    check("hopeless", "4M", &[]);
}

/// What a program says of its own address space or data holds for its blocks and mappings,
/// and in a child of fork; what vfork's child says is the child's.
#[test]
fn limits_that_a_program_sets_on_itself_bound_its_blocks() {
    check_with(&["--mmap=64K"], "bounded", "4M", &[]);
}

/// Proves that a limit on address space counts what the program maps, in each way of mapping,
/// and nothing of what the heap reserves; and that the program, and what it executes, is told
/// what was set.
#[test]
fn a_limit_on_address_space_counts_what_the_program_maps() {
    check_with(&["--mmap=64K"], "space", "4M", &[]);
}

/// mincore(2) tells of pages that are there and refuses what is not mapped; mallopt(3) leaves
/// blocks alone; malloc_info(3) counts them; cfree(3) frees them.
#[test]
fn questions_about_memory_are_answered_and_old_names_work() {
    check_with(&["--mmap=64K"], "asks", "4M", &[]);
}

#[test]
fn a_fork_waits_for_no_lock_of_ours_before_those_of_libc() {
    check("iolocks", "1M", &[]);
}

#[test]
fn taken_mappings_move_to_where_the_program_says() {
    check_with(&["--mmap=64K"], "moves", "4M", &[]);
}

#[test]
fn ordinary_memory_moves_over_the_heaps() {
    check_with(&["--mmap=64K"], "ordinary", "4M", &[]);
}

#[test]
fn closed_pages_are_closed_in_children_however_they_are_made() {
    check_with(&["--mmap=64K"], "childaccess", "4M", &[]);
}

#[test]
fn what_moves_has_the_access_that_it_had() {
    check_with(&["--mmap=64K"], "protected", "4M", &[]);
}

#[test]
fn what_is_unmapped_or_mapped_over_faults_as_the_kernel_has_it() {
    check_with(&["--mmap=64K"], "holes", "4M", &[]);
}

#[test]
fn a_child_gets_zeros_or_nothing_where_its_parent_said_so() {
    check_with(&["--mmap=64K"], "heirs", "4M", &[]);
}

#[test]
fn all_memory_is_locked_or_it_is_said_that_it_is_not() {
    check("mlockall", "4M", &[]);
    check("mlockall", "4M", &["1"]);
}

#[test]
fn a_second_c_library_finds_memory_that_was_put_away() {
    check("namespaces", "4M", &[]);
}

/// Proves that neither a child of vfork(2) that has the number of one before it takes that one's
/// signals for its own, nor one that has its parent's number changes its parent's.
#[test]
fn children_with_one_number_have_signals_of_their_own() {
    check("samenumber", "4M", &[]);
    let folder = scratch("samenumber-first");
    let built = folder.join("samenumber");
    compile(&[], "samenumber.c", &built, &[]);
    let arguments = [built.to_str().unwrap(), folder.to_str().unwrap(), PRESSURE];
    let first = |command: &[&str]| {
        let mut first = Command::new("unshare");
        let output = first
            .args(["-f", "-p"])
            .args(command)
            .args(arguments)
            .output();
        output.unwrap()
    };
    let natively = first(&[]);
    if !natively.status.success() {
        println!("SKIPPED: no process namespace can be made: {natively:?}");
        return;
    }
    for backend in backends() {
        let run = [env!("CARGO_BIN_EXE_ghostmem"), "run", "--limit", "4M"];
        let output = first(&[&run[..], &["--backend", backend, "--"]].concat());
        assert_ok(&output, backend);
    }
}

/// Proves that two tasks on one thread block, each with faults of its own at the same time, leave
/// no mark there: what is allocated later is put away, and found by system calls.
#[test]
fn two_tasks_on_one_thread_block_leave_no_mark_there() {
    check("sameblock", "1M", &[]);
}

/// Proves that a child which has its parent's handlers, and executes a program, leaves them to
/// its parent, where the program ignores what the engine's faults are told by.
#[test]
fn a_child_with_its_parents_handlers_leaves_them_alone() {
    check("samehandlers", "4M", &[]);
}

#[test]
fn a_thread_that_ends_with_robust_mutexes_leaves_word() {
    check("robust", "4M", &[]);
}

#[test]
fn a_handler_that_forks_comes_beside_a_fork() {
    check("forkinfork", "4M", &[]);
}

#[test]
fn signals_come_in_what_a_program_does_around_its_forks() {
    check("forkparts", "4M", &[]);
}

#[test]
fn threads_end_as_without_us_and_the_last_one_ends_the_process() {
    // Who is the last: of a detached thread, one with a stack of its own, a joinable one, one by
    // thrd_create(3), main by pthread_exit(3), main cancelled, a thread in a child, and none; one that
    // leaves what it has at exit, one of libc's own, one that libc does not know of, and a child
    // that runs nothing at exit.
    for last in ["d", "s", "j", "t", "m", "c", "f", "r", "x", "a", "l", "q"] {
        check_as(&[], "threadends", "4M", &[last], &[]);
    }
}

#[test]
fn opening_a_range_opens_no_page_that_is_not_there() {
    check("opened", "4M", &[]);
}

/// Proves that a program that wants one place and no other gets it in the end, and one that
/// takes any place after as many tries as Go's runtime makes has ghost memory.
#[test]
fn a_place_that_is_insisted_on_is_given() {
    check_with(&["--mmap=64K"], "insists", "4M", &[]);
}

#[test]
fn what_is_reserved_first_is_taken_and_used_later() {
    check_with(&["--mmap=64K"], "arenas", "4M", &[]);
}

#[test]
fn other_mappings_over_pages_that_are_evicted_are_what_they_are() {
    check_with(&["--mmap=64K"], "foreign", "2M", &[]);
}

#[test]
fn a_touch_finds_one_mapping_or_the_other() {
    check_with(&["--mmap=64K"], "retaken", "2M", &[]);
}

#[test]
fn memory_that_cannot_become_code_stays_what_it_is() {
    check_with(&["--mmap=64K"], "wx", "2M", &[]);
}

#[test]
fn mappings_over_the_heap_and_lists_of_groups_are_where_they_are() {
    check("over", "4M", &[]);
}

#[test]
fn one_call_stays_one_call() {
    check("onecall", "4M", &["8388608"]);
}

#[test]
fn the_malloc_family_says_what_is_in_use_and_gives_back() {
    check("accounts", "512M", &[]);
}

#[test]
fn a_child_that_is_to_be_traced_comes_to_its_exec() {
    check("traced", "4M", &[]);
}

#[test]
fn a_process_ends_with_its_code_wherever_a_signal_came() {
    let folder = scratch("exits");
    let built = folder.join("exits");
    compile(&[], "exits.c", &built, &[]);
    for small in ["on", "off"] {
        for seed in 1..=12 {
            let mut command = Command::new("timeout");
            command.args(["-s", "KILL", "60", env!("CARGO_BIN_EXE_ghostmem"), "run"]);
            command.args(["--limit", "8M", "--small", small, "--stats", "--"]);
            let output = command.arg(&built).arg(seed.to_string()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(5), "{small} {seed}: {said}");
        }
    }
}

/// Proves that a thread is cancelled in calls that are made on copies, as in all others.
#[test]
fn a_thread_is_cancelled_in_a_call_whose_arguments_are_copied() {
    check("cancelled", "2M", &[]);
}

/// Proves that blocked and ignored signals reach what is executed, that a child of clone3 has
/// the handlers it asked for, and that exec works under a limit the process set itself.
#[test]
fn what_is_executed_inherits_the_signals_of_faults_as_others() {
    check("inherited", "2M", &[]);
}

/// Proves that a handler's system calls are the program's where it comes in the midst of malloc.
#[test]
fn a_handler_in_the_midst_of_malloc_makes_calls_of_the_programs() {
    check("amid", "2M", &[]);
}

/// Proves that a handler that came in the midst of malloc, free or realloc makes children, by
/// libc and without: none waits for ever, and all are whole.
#[test]
fn a_handler_in_the_midst_of_malloc_makes_children() {
    check_with(&["--mmap=64K"], "forkamid", "4M", &[]);
    check_as(&["--small=off"], "forkamid", "4M", &["small"], &[]);
    check_as(&["--mmap=64K"], "forkamid", "4M", &["early"], &[]);
}

/// Proves that SIGSEGV and SIGBUS sent to a process are the process's, while all of its threads
/// have them blocked.
#[test]
fn fault_signals_sent_to_a_process_are_taken_by_whoever_waits_for_them() {
    check("sent", "4M", &[]);
}

/// Proves that calls with buffers and structures that are good in part get the kernel's answer,
/// and that as much arrives, and stays to be read.
#[test]
fn what_is_good_in_part_gets_the_answer_of_the_kernel() {
    check_with(&["--mmap=64K"], "edges", "4M", &[]);
}

/// Proves that calls which a handler leaves by a jump take no memory along, and that others
/// keep theirs meanwhile, in a child of a handler too.
#[test]
fn calls_that_are_left_by_a_jump_leave_nothing_behind() {
    check("jumps", "4M", &[]);
}

/// Proves on which stack a handler of faults runs, and that it may leave it for good.
#[test]
fn a_handler_of_faults_runs_where_the_kernel_would_run_it() {
    check("handled", "2M", &[]);
}

/// Proves that a heap is not made where the program's own allocator has a lock.
#[test]
fn a_program_with_an_allocator_of_its_own_maps_under_its_lock() {
    check("ownmalloc", "2M", &[]);
}

/// Proves that stacks for which the limit has no room become ordinary memory.
#[test]
fn threads_have_stacks_from_malloc_beyond_the_limit() {
    check("manystacks", "2M", &[]);
}

/// Proves that the heap can be made in the midst of the loader's work.
#[test]
fn the_heap_is_made_while_the_loader_opens_an_object() {
    check("loading", "1M", &[]);
}

/// Proves that the engine's threads are not in the way of unshare(2) and setns(2), which
/// want a process of one thread, with and without an engine that has threads afterwards.
#[test]
fn a_process_of_one_thread_is_one_to_the_kernel() {
    check("single", "2M", &[]);
}

/// Proves that the engine calls libc's functions and not the program's of the same names.
#[test]
fn a_program_has_functions_by_names_of_libcs() {
    check("ownnames", "2M", &[]);
}

/// Proves that the times of processes and threads, for which the vDSO makes system calls,
/// arrive in memory that is not there.
#[test]
fn clocks_write_their_times_where_no_memory_is() {
    check_with(&["--mmap=64K"], "clocks", "2M", &[]);
}

/// Proves that lengths which are errors, or end beyond what a process may have, are refused in
/// calls on heap memory as in others, and that nothing is written or read.
#[test]
fn lengths_beyond_all_memory_move_nothing() {
    check_with(&["--mmap=64K"], "toolong", "2M", &[]);
}

/// Proves that what TCP throws away is written nowhere, and nothing else in its place.
#[test]
fn what_is_received_and_thrown_away_leaves_buffers_alone() {
    check_with(&["--mmap=64K"], "discards", "2M", &[]);
}

/// Proves that ranges with other mappings in them are locked and unlocked, and held no longer.
#[test]
fn ranges_are_locked_whatever_lies_in_them() {
    check_with(&["--mmap=64K"], "lockparts", "4M", &[]);
}

/// Proves that a protection key is refused where there is none, and counts where there is one.
#[test]
fn a_protection_key_counts_or_is_refused() {
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    if !processor.split_whitespace().any(|flag| flag == "ospke") {
        println!("SKIPPED in part: this processor has no protection keys; refusals are tested");
    }
    check_with(&["--mmap=64K"], "keys", "4M", &[]);
}

/// Proves that lists of buffers of which some cannot be written are read into as far as the kernel
/// does it, and that what is behind is not lost.
#[test]
fn lists_with_buffers_that_cannot_be_written_lose_nothing() {
    check("readonly", "2M", &[]);
}

/// Proves that what the kernel does not write is not written in its name.
#[test]
fn what_the_kernel_does_not_write_is_left_alone() {
    check("untouched", "2M", &[]);
}

/// Proves that looks at sockets that are longer than a stand-in see all that is there, and that
/// they begin where the program said.
#[test]
fn looks_at_sockets_begin_where_the_program_said() {
    check("peeks", "4M", &[]);
}

/// Proves that what comes behind a message that was sent in part is not sent in its midst.
#[test]
fn nothing_is_sent_in_the_midst_of_a_message() {
    check("torn", "4M", &[]);
}

/// Proves that numbers of the engine's are open to no call that programs ask by.
#[test]
fn numbers_of_the_engine_look_closed_to_every_call() {
    check("looksclosed", "4M", &[]);
}

/// Proves that a limit on open files which is raised for a fork is nobody else's.
#[test]
fn a_limit_that_is_raised_for_a_fork_is_in_no_other_child() {
    check("forklimits", "4M", &[]);
}

/// Proves that a program begins with errno 0, and that what leaves it alone natively does so here.
#[test]
fn errno_is_the_programs() {
    check_with(&["--mmap=64K"], "errnos", "4M", &[]);
}

/// Proves that what was reserved and unmapped, whole or in part, is a place for anything again:
/// memory, files, a buffer mapped twice in a row, segments of shared memory.
#[test]
fn places_that_were_unmapped_are_mapped_again() {
    check_with(&["--mmap=64K"], "vacated", "1M", &[]);
}

/// Proves that nothing of another thread's is lost where ordinary memory in the heap's place
/// moves away, over the heap's, or is detached.
#[test]
fn what_moves_away_takes_nothing_of_another_threads_along() {
    check_with(&["--mmap=64K"], "gaps", "2M", &[]);
}

/// Proves that a signal of those that the engine uses, sent to the process, runs its handler on
/// a thread of the program's.
#[test]
fn handlers_run_on_no_thread_of_the_engines() {
    check("visited", "4M", &[]);
}

/// Proves that a fork and a fork in a handler on another thread, in the midst of malloc, do not
/// wait for each other.
#[test]
fn a_fork_beside_a_handler_that_forks_ends() {
    check("forkpair", "4M", &[]);
}

/// Proves that a child has every page that was away when it was made: at its first touch, for
/// several threads at once, in a child of its own, and while its parent's threads store.
#[test]
fn a_fresh_child_has_all_that_was_away() {
    check("freshchild", "2M", &[]);
}

/// Proves that an error which recvmmsg(2) meets behind some messages is kept for the next call on
/// the socket, and that these messages are there.
#[test]
fn an_error_behind_messages_is_kept_for_the_next_call() {
    check("laterrors", "4M", &[]);
}

/// Proves that no call changes where looks at a socket begin, not even while it waits.
#[test]
fn where_looks_begin_is_never_changed() {
    check("offsets", "4M", &[]);
}

/// Proves that numbers of the engine's are closed to calls that use them, wait for them or send
/// them to another process.
#[test]
fn numbers_of_the_engine_are_closed_to_calls_that_use_them() {
    check("usesclosed", "4M", &[]);
}

/// Proves that what a thread sets as the limit on open files stays, while others fork.
#[test]
fn a_limit_that_is_set_while_others_fork_stays() {
    check("setsmeanwhile", "4M", &[]);
}

/// Proves that a protection key for what was reserved takes nothing of the bound on memory.
#[test]
fn a_key_for_a_reservation_takes_no_memory() {
    let bound = ["--memory-each=64M"];
    check_under(&bound, &["--mmap=64K"], "lazykeys", &[], &[]);
}

/// Proves that on a table of descriptors which another process shares the program's own have any
/// number.
#[test]
fn numbers_on_a_shared_table_are_the_programs() {
    check("ownhigh", "4M", &[]);
}

/// Proves that a mapping that moves stays locked, that no store of another thread to it is lost
/// meanwhile, and that a move which is refused changes nothing.
#[test]
fn what_moves_keeps_its_locks_and_what_threads_store() {
    check_with(&["--mmap=64K"], "moving", "4M", &[]);
}

/// Proves that a move for whose copy there is no memory, which shows in its midst, leaves all that
/// was there, and what another thread stores meanwhile.
#[test]
fn what_has_no_memory_to_move_stays_as_it_is() {
    check_with(&["--mmap=64K", "--memory=48M"], "full", "32M", &[]);
}
