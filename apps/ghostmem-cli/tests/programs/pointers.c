/* Calls whose structures have no size that is known for sure, or point on; and
 * what the kernel writes, no more. Run with a small limit, as root for a few. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/ethtool.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A filter on the stack points to its instructions on the heap; the option that
 * reads it back counts in instructions, not in bytes. */
static void filters(void) {
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct sock_filter *code = ghost(sizeof *code * 100);
    for (int i = 0; i < 99; i++) code[i] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_IMM, i);
    code[99] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0x1234);
    struct sock_fprog program = {100, code};
    evict();
    CHECK(setsockopt(s, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
    struct sock_filter *back = ghost(sizeof *back * 101);
    memset(&back[100], 0x5a, sizeof *back);
    socklen_t *count = ghost(sizeof *count);
    *count = 100;
    evict();
    CHECK(getsockopt(s, SOL_SOCKET, SO_GET_FILTER, back, count) == 0 && *count == 100);
    CHECK(back[57].k == 57 && back[99].k == 0x1234 && ((char *)&back[100])[0] == 0x5a);
    close(s);
}

/* Requests whose numbers say too much, too little, or nothing. */
static void requests(const char *folder) {
    int fd = open(folder, O_RDONLY | O_DIRECTORY);
    long *flags = ghost(16);
    flags[0] = flags[1] = 0x5a5a5a5a5a5a5a5a;
    evict();
    /* The number says 8 bytes; the kernel writes 4. */
    if (ioctl(fd, FS_IOC_GETFLAGS, flags) == 0)
        CHECK((unsigned long)flags[0] >> 32 == 0x5a5a5a5a && flags[1] == 0x5a5a5a5a5a5a5a5a);
    close(fd);
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq *request = ghost(sizeof *request);
    struct ethtool_value *value = ghost(sizeof *value);
    strcpy(request->ifr_name, "lo");
    value->cmd = ETHTOOL_GLINK;
    request->ifr_data = (void *)value;
    struct ifreq plain = *request;
    int native = ioctl(s, SIOCETHTOOL, &plain);
    value->data = 77;
    evict();
    CHECK(ioctl(s, SIOCETHTOOL, request) == native);
    CHECK(native != 0 || value->data == 1);
    struct ifconf list = {40 * sizeof *request, {ghost(40 * sizeof *request)}};
    evict();
    CHECK(ioctl(s, SIOCGIFCONF, &list) == 0 && list.ifc_len % sizeof *request == 0);
    close(s);
    int fds[2];
    CHECK(pipe(fds) == 0 && write(fds[1], "12345", 5) == 5);
    int *ready = ghost(8);
    ready[1] = 0x5a5a5a5a;
    evict();
    CHECK(ioctl(fds[0], FIONREAD, ready) == 0 && ready[0] == 5 && ready[1] == 0x5a5a5a5a);
    close(fds[0]); close(fds[1]);
}

/* Words beside a structure that look like pointers, to blocks that are gone. */
static void stale(void) {
    struct { int value; char *gone[40]; } box;
    int fds[2];
    CHECK(pipe(fds) == 0);
    for (int i = 0; i < 40; i++) {
        box.gone[i] = malloc(i % 2 ? 5000000 : 300);
        memset(box.gone[i], 1, 300);
    }
    for (int i = 0; i < 40; i++) free(box.gone[i]);
    for (int i = 0; i < 40; i++) box.gone[i] += i % 2 ? 1000000 : 0;
    evict();
    CHECK(ioctl(fds[0], FIONREAD, &box.value) == 0 && box.value == 0);
    close(fds[0]); close(fds[1]);
}

/* A call whose structure the kernel writes to before it fails, for want of what lies beyond
 * what is held at first: the second one begins with what the program gave. */
static void batches(void) {
    enum { COUNT = 300, BYTES = 2000 };
    union bpf_attr attribute = {.map_type = BPF_MAP_TYPE_HASH, .key_size = 4, .value_size = BYTES, .max_entries = COUNT};
    int map = (int)syscall(SYS_bpf, BPF_MAP_CREATE, &attribute, sizeof attribute);
    if (map < 0) { CHECK(errno == EPERM || errno == ENOSYS); return; }
    int *key = ghost(4), *keys = ghost(COUNT * 4), *after = ghost(4);
    char *value = ghost(BYTES), *values = ghost(COUNT * BYTES);
    for (*key = 0; *key < COUNT; ++*key) {
        memset(value, *key, BYTES);
        memset(&attribute, 0, sizeof attribute);
        attribute.map_fd = map;
        attribute.key = (size_t)key;
        attribute.value = (size_t)value;
        CHECK(syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &attribute, sizeof attribute) == 0);
    }
    for (int round = 0; round < 2; round++) {
        union bpf_attr *asked = round ? ghost(sizeof *asked) : &attribute;
        memset(asked, 0, sizeof *asked);
        asked->batch.out_batch = (size_t)after;
        asked->batch.keys = (size_t)keys;
        asked->batch.values = (size_t)values;
        asked->batch.count = COUNT;
        asked->batch.map_fd = map;
        evict();
        long done = syscall(SYS_bpf, BPF_MAP_LOOKUP_BATCH, asked, sizeof *asked);
        if (done == -1 && errno == EINVAL) break; /* Before Linux 5.6. */
        CHECK((done == 0 || errno == ENOENT) && asked->batch.count == COUNT);
        for (int i = 0; i < COUNT; i++) CHECK(values[i * BYTES + BYTES - 1] == (char)keys[i]);
        memset(values, 0, COUNT * BYTES);
    }
    close(map);
}

/* A structure that is the fourth argument, and its length. */
static void mounts(void) {
    struct { unsigned long long set, clear, propagation, user; } *attributes = ghost(sizeof *attributes);
    int tree = (int)syscall(SYS_open_tree, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */);
    if (tree < 0) { CHECK(errno == EPERM || errno == ENOSYS || errno == EINVAL); return; }
    attributes->set = 1; /* MOUNT_ATTR_RDONLY */
    evict();
    CHECK(syscall(442 /* mount_setattr */, tree, "", AT_EMPTY_PATH, attributes, sizeof *attributes) == 0 || errno == ENOSYS);
    close(tree);
}

static void kernel_objects(void) {
    union bpf_attr attribute;
    struct bpf_insn *code = ghost(sizeof *code * 2);
    code[0] = (struct bpf_insn){.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 3};
    code[1] = (struct bpf_insn){.code = BPF_JMP | BPF_EXIT};
    memset(&attribute, 0, sizeof attribute);
    attribute.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
    attribute.insn_cnt = 2;
    attribute.insns = (size_t)code;
    char *license = ghost(4);
    strcpy(license, "GPL");
    attribute.license = (size_t)license;
    evict();
    long fd = syscall(SYS_bpf, BPF_PROG_LOAD, &attribute, sizeof attribute);
    CHECK(fd >= 0 || errno == EPERM || errno == ENOSYS);
    if (fd >= 0) close((int)fd);
    /* More of a block than is held at first, twice. */
    int count = 100000, *where = ghost(count * sizeof *where);
    void **pages = ghost(count * sizeof *pages);
    for (int i = 0; i < count; i++) pages[i] = &attribute;
    where[count - 1] = 0x5a5a;
    evict();
    CHECK(syscall(SYS_move_pages, 0, count, pages, NULL, where, 0) == 0 || errno == ENOSYS || errno == EPERM);
    CHECK(errno == ENOSYS || errno == EPERM || where[count - 1] >= 0 && where[count - 1] < 0x1000);
    int many = 60000;
    code = ghost(sizeof *code * many);
    for (int i = 0; i < many - 1; i++) code[i] = (struct bpf_insn){.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = i};
    code[many - 1] = (struct bpf_insn){.code = BPF_JMP | BPF_EXIT};
    attribute.insn_cnt = many;
    attribute.insns = (size_t)code;
    evict();
    long long_one = syscall(SYS_bpf, BPF_PROG_LOAD, &attribute, sizeof attribute);
    CHECK(long_one >= 0 || fd < 0);
    if (long_one >= 0) close((int)long_one);

    batches();
    mounts();

    /* A structure that says its own length. */
    struct { unsigned size, policy; unsigned long flags; int nice, priority; unsigned long r, d, p; unsigned lo, hi; char more[64]; } *s = ghost(sizeof *s);
    memset(s->more, 0x5a, sizeof s->more);
    evict();
    CHECK(syscall(SYS_sched_getattr, 0, s, 48, 0) == 0 && s->size >= 48 && s->more[40] == 0x5a);

    struct { unsigned bytes; int type; char handle[128]; } *handle = ghost(sizeof *handle);
    int *mount = ghost(4);
    char *path = ghost(8);
    strcpy(path, ".");
    handle->bytes = 128;
    *mount = -1;
    evict();
    CHECK(syscall(SYS_name_to_handle_at, AT_FDCWD, path, handle, mount, 0) == 0 || errno == EOPNOTSUPP);

    int set = semget(IPC_PRIVATE, 3, 0600 | IPC_CREAT);
    unsigned short *values = ghost(6), *back = ghost(8);
    values[0] = 5; values[2] = 7; back[3] = 0x5a5a;
    evict();
    CHECK(set >= 0 && semctl(set, 0, SETALL, values) == 0);
    evict();
    CHECK(semctl(set, 0, GETALL, back) == 0 && back[0] == 5 && back[2] == 7 && back[3] == 0x5a5a);
    semctl(set, 0, IPC_RMID);

    int queue = msgget(IPC_PRIVATE, 0600 | IPC_CREAT);
    struct { long type; char text[64]; } *message = ghost(sizeof *message), *got = ghost(sizeof *got);
    message->type = 3;
    memset(message->text, 'm', 64);
    memset(got->text, 0x5a, 64);
    evict();
    CHECK(msgsnd(queue, message, 40, 0) == 0);
    evict();
    /* Too long for the room: refused, and still there. */
    CHECK(msgrcv(queue, got, 10, 0, 0) == -1 && errno == E2BIG && got->text[0] == 0x5a);
    CHECK(msgrcv(queue, got, 64, 0, 0) == 40 && got->type == 3 && got->text[39] == 'm' && got->text[40] == 0x5a);
    msgctl(queue, IPC_RMID, 0);

    /* Requests of syslog(2) that have no use for the buffer leave it alone. */
    char *log = ghost(64);
    memset(log, 0x5a, 64);
    evict();
    CHECK(klogctl(10, log, 64) > 0 || errno == EPERM);
    for (int i = 0; i < 64; i++) CHECK(log[i] == 0x5a);
}

static void other_memory(void) {
    char *out = ghost(3 << 20), *in = ghost(3 << 20);
    memset(in, 0x77, 3 << 20);
    for (int i = 0; i < 3 << 20; i += 512) out[i] = (char)(i >> 9);
    int fds[2], more[2];
    CHECK(pipe(fds) == 0 && pipe(more) == 0);
    char *plain = mmap(0, 3 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(plain != MAP_FAILED);
    memcpy(plain, out, 3 << 20);
    pid_t child = fork();
    if (child == 0) { char c; read(fds[0], &c, 1); _exit(c == 'e' ? 4 : 5); }
    /* From the child's memory, which is at the same place, into ours. */
    struct iovec here[2] = {{in, 50000}, {in + 100000, 50000}}, there = {prepare, 100};
    evict();
    CHECK(process_vm_readv(child, here, 2, &there, 1, 0) == 100 && memcmp(in, prepare, 100) == 0);
    /* And as much as a stand-in takes. */
    struct iovec large = {in, 3 << 20}, from = {plain, 3 << 20};
    memset(in, 0, 3 << 20);
    evict();
    CHECK(process_vm_readv(child, &large, 1, &from, 1, 0) == 3 << 20 && memcmp(in, plain, 3 << 20) == 0);
    memset(in, 0x77, 3 << 20);
    munmap(plain, 3 << 20);
    CHECK(write(fds[1], "e", 1) == 1);
    int *status = ghost(4);
    *status = 0x5a5a5a5a;
    CHECK(waitpid(child, status, 0) == child && WEXITSTATUS(*status) == 4);
    *status = 0x5a5a5a5a;
    CHECK(waitpid(-1, status, WNOHANG) == -1 && *status == 0x5a5a5a5a);

    /* Pages that stay in a pipe while other calls use stand-ins. */
    struct iovec part = {out, 40000};
    evict();
    CHECK(vmsplice(more[1], &part, 1, 0) == 40000);
    int null = open("/dev/null", O_WRONLY);
    for (int i = 0; i < 20; i++) { evict(); CHECK(write(null, in, 40000) == 40000); }
    for (int done = 0; done < 40000;) { ssize_t n = read(more[0], in + done, 40000 - done); CHECK(n > 0); done += n; }
    for (int i = 0; i < 40000; i += 512) CHECK(in[i] == (char)(i >> 9));
    close(null); close(more[0]); close(more[1]); close(fds[0]); close(fds[1]);
}

static struct pollfd *list;
static int released;
static void *sets_events(void *pipe_end) {
    struct timespec ms = {0, 50000000};
    nanosleep(&ms, 0);
    list[1].events = POLLIN | POLLPRI;
    list[1].fd = -1;
    __atomic_store_n(&released, 1, __ATOMIC_SEQ_CST);
    CHECK(write((int)(long)pipe_end, "x", 1) == 1);
    return 0;
}

/* Another thread changes what the kernel only reads. */
static void beside(void) {
    int fds[2];
    CHECK(pipe(fds) == 0);
    for (int way = 0; way < 2; way++) {
        list = ghost(sizeof *list * 2);
        list[0] = (struct pollfd){fds[0], POLLIN, 0};
        list[1] = (struct pollfd){fds[0], 0, 0x5a};
        pthread_t t;
        CHECK(pthread_create(&t, 0, sets_events, (void *)(long)fds[1]) == 0);
        struct timespec second = {5, 0};
        CHECK((way ? ppoll(list, 2, &second, 0) : poll(list, 2, 5000)) == 1);
        CHECK(pthread_join(t, 0) == 0 && list[0].revents == POLLIN && list[1].revents == 0);
        CHECK(list[1].events == (POLLIN | POLLPRI) && list[1].fd == -1);
        char c;
        CHECK(read(fds[0], &c, 1) == 1);
    }
    /* The rest of a sleep is written only when a signal ended it. */
    struct timespec *times = ghost(sizeof *times * 2);
    times[0].tv_nsec = 1000;
    times[1] = (struct timespec){77, 88};
    evict();
    CHECK(nanosleep(&times[0], &times[1]) == 0 && times[1].tv_sec == 77 && times[1].tv_nsec == 88);
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, &times[0], &times[1]) == 0 && times[1].tv_sec == 77);
    close(fds[0]); close(fds[1]);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    filters();
    requests(argv[1]);
    stale();
    kernel_objects();
    other_memory();
    beside();
    printf("ok\n");
    return 0;
}
