// Runs a program under restrictions of a service manager's kind: under WHAT PROGRAM ...
//   userfaultfd, vectored   ends the process at that call
//   guard                   the same for what the guard backend needs
//   unnamed                 the same for every call that is newer than this file
//   readonly                the same for a file opened to be made
//   container               what container engines have by default: refuses what only the
//                           machine's owner needs, userfaultfd(2) among it, and ends nobody
//   mdwe                    memory that was writable may not become code
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AT(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF(test, value, yes, no) BPF_JUMP(BPF_JMP | test | BPF_K, value, yes, no)
#define SAYS(answer) BPF_STMT(BPF_RET | BPF_K, answer)

static struct sock_filter code[200];
static int length;

static void put(struct sock_filter one) { code[length++] = one; }

// Answers some calls so.
static void answer(const int *numbers, int count, unsigned answer)
{
    for (int i = 0; i < count; i++) {
        put((struct sock_filter)IF(BPF_JEQ, numbers[i], 0, 1));
        put((struct sock_filter)SAYS(answer));
    }
}

int main(int count, char **argument)
{
    const char *what = argument[1];
    if (!strcmp(what, "mdwe")) {
        if (prctl(65, 1, 0, 0, 0))
            return 99;
        execv(argument[2], argument + 2);
        return 97;
    }
    put((struct sock_filter)AT(nr));
    if (!strcmp(what, "container")) {
        const int owners[] = {SYS_userfaultfd, SYS_io_uring_setup, SYS_io_uring_enter,
                              SYS_io_uring_register, SYS_keyctl, SYS_add_key, SYS_request_key,
                              SYS_bpf, SYS_perf_event_open, SYS_mount, SYS_umount2, SYS_pivot_root,
                              SYS_swapon, SYS_swapoff, SYS_reboot, SYS_unshare, SYS_setns,
                              SYS_init_module, SYS_delete_module, SYS_kexec_load, SYS_acct,
                              SYS_open_by_handle_at, SYS_settimeofday, SYS_clock_settime,
                              SYS_move_pages, SYS_mbind, SYS_set_mempolicy, SYS_quotactl};
        const int newer[] = {SYS_clone3};
        answer(owners, sizeof owners / sizeof *owners, SECCOMP_RET_ERRNO | EPERM);
        answer(newer, 1, SECCOMP_RET_ERRNO | ENOSYS);
        // What was made since, as those do that know no more.
        put((struct sock_filter)IF(BPF_JGT, SYS_process_madvise, 0, 1));
        put((struct sock_filter)SAYS(SECCOMP_RET_ERRNO | ENOSYS));
    } else if (!strcmp(what, "unnamed")) {
        put((struct sock_filter)IF(BPF_JGT, 1000, 0, 1));
        put((struct sock_filter)SAYS(SECCOMP_RET_KILL_PROCESS));
    } else if (!strcmp(what, "readonly")) {
        put((struct sock_filter)IF(BPF_JEQ, SYS_openat, 0, 3));
        put((struct sock_filter)AT(args[2]));
        put((struct sock_filter)IF(BPF_JSET, O_CREAT, 0, 1));
        put((struct sock_filter)SAYS(SECCOMP_RET_KILL_PROCESS));
    } else {
        int number = SYS_userfaultfd;
        if (!strcmp(what, "vectored"))
            number = SYS_process_madvise;
        if (!strcmp(what, "guard"))
            number = SYS_memfd_create;
        answer(&number, 1, SECCOMP_RET_KILL_PROCESS);
    }
    put((struct sock_filter)SAYS(SECCOMP_RET_ALLOW));
    struct sock_fprog filter = {length, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &filter))
        return 98;
    execv(argument[2], argument + 2);
    return 97;
}
