// Runs a program under restrictions of a service manager's kind: under WHAT PROGRAM ...
//   userfaultfd, vectored   ends the process at that call
//   guard                   the same for what the guard backend needs
//   mdwe                    memory that was writable may not become code
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **argument)
{
    if (!strcmp(argument[1], "mdwe")) {
        if (prctl(65, 1, 0, 0, 0))
            return 99;
    } else {
        int number = SYS_userfaultfd;
        if (!strcmp(argument[1], "vectored"))
            number = SYS_process_madvise;
        if (!strcmp(argument[1], "guard"))
            number = SYS_memfd_create;
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
        struct sock_fprog filter = {sizeof code / sizeof *code, code};
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &filter))
            return 98;
    }
    execv(argument[2], argument + 2);
    return 97;
}
