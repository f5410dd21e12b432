/* A file system in user space (fuse(4)), and one who reads and writes it in blocks of 1 MiB:
 * each block is one request, as the kernel has it, and both have all of it in memory that
 * comes and goes. Ends with 77 where nothing can be mounted.
 *
 * served FOLDER BYTES */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK (1ul << 20)
#define BLOCKS 6
#define FILE_ID 2

static int device;
static char *content;
static int written, read_back;

static void reply(const struct fuse_in_header *asked, int error, const void *body, size_t bytes) {
    struct fuse_out_header head = {.len = sizeof head + bytes, .error = error, .unique = asked->unique};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)body, bytes}};
    CHECK(writev(device, parts, bytes ? 2 : 1) == (ssize_t)head.len);
}

static struct fuse_attr attributes(uint64_t id) {
    struct fuse_attr found = {.ino = id, .nlink = 1, .blksize = BLOCK};
    found.mode = id == FILE_ID ? S_IFREG | 0644 : S_IFDIR | 0755;
    found.size = id == FILE_ID ? BLOCKS * BLOCK : 0;
    return found;
}

/* 0: the file system is gone. */
static int serve(char *request) {
    ssize_t bytes = read(device, request, BLOCK + 8192);
    if (bytes < 0 && errno == ENODEV) return 0;
    if (bytes < 0 && (errno == EINTR || errno == ENOENT)) return 1;
    struct fuse_in_header *asked = (struct fuse_in_header *)request;
    void *more = asked + 1;
    CHECK(bytes >= (ssize_t)sizeof *asked && asked->len == bytes);
    switch (asked->opcode) {
    case FUSE_INIT: {
        struct fuse_init_out told = {.major = FUSE_KERNEL_VERSION, .minor = 31, .max_write = BLOCK, .max_pages = BLOCK / 4096};
        told.flags = FUSE_BIG_WRITES | FUSE_MAX_PAGES;
        told.max_background = 8;
        reply(asked, 0, &told, sizeof told);
        return 1;
    }
    case FUSE_LOOKUP: {
        struct fuse_entry_out told = {.nodeid = FILE_ID, .attr = attributes(FILE_ID)};
        int is_it = !strcmp(more, "file");
        reply(asked, is_it ? 0 : -ENOENT, &told, is_it ? sizeof told : 0);
        return 1;
    }
    case FUSE_GETATTR:
    case FUSE_SETATTR: {
        struct fuse_attr_out told = {.attr = attributes(asked->nodeid)};
        reply(asked, 0, &told, sizeof told);
        return 1;
    }
    case FUSE_OPEN: {
        struct fuse_open_out told = {.fh = 1, .open_flags = FOPEN_DIRECT_IO};
        reply(asked, 0, &told, sizeof told);
        return 1;
    }
    case FUSE_WRITE: {
        struct fuse_write_in *in = more;
        struct fuse_write_out told = {.size = in->size};
        /* As a whole, wherever it was. */
        CHECK(in->size == BLOCK && in->offset % BLOCK == 0 && in->offset < BLOCKS * BLOCK);
        memcpy(content + in->offset, in + 1, in->size);
        written++;
        evict();
        reply(asked, 0, &told, sizeof told);
        return 1;
    }
    case FUSE_READ: {
        struct fuse_read_in *in = more;
        CHECK(in->size == BLOCK && in->offset % BLOCK == 0 && in->offset < BLOCKS * BLOCK);
        read_back++;
        evict();
        reply(asked, 0, content + in->offset, in->size);
        return 1;
    }
    case FUSE_FLUSH:
    case FUSE_RELEASE:
        reply(asked, 0, NULL, 0);
        return 1;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        return 1;
    case FUSE_DESTROY:
        return 0;
    default:
        reply(asked, -ENOSYS, NULL, 0);
        return 1;
    }
}

static char byte_of(size_t at) { return (char)(at * 7 + at / 4096 * 3 + at / BLOCK); }

/* The other side, in a process of its own. */
static int use(const char *folder) {
    char path[4096];
    snprintf(path, sizeof path, "%s/file", folder);
    char *block = ghost(BLOCK);
    int file = open(path, O_RDWR);
    CHECK(file >= 0);
    for (size_t n = 0; n < BLOCKS; n++) {
        for (size_t at = 0; at < BLOCK; at++) block[at] = byte_of(n * BLOCK + at);
        evict();
        CHECK(write(file, block, BLOCK) == BLOCK);
    }
    for (size_t n = BLOCKS; n-- > 0;) {
        memset(block, 0, BLOCK);
        evict();
        CHECK(pread(file, block, BLOCK, n * BLOCK) == BLOCK);
        for (size_t at = 0; at < BLOCK; at++) CHECK(block[at] == byte_of(n * BLOCK + at));
    }
    CHECK(close(file) == 0);
    return 5;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    char options[200], folder[4096];
    snprintf(folder, sizeof folder, "%s/mounted", argv[1]);
    mkdir(folder, 0755);
    prepare(argv[2]);
    device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0) return 77;
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=%d,group_id=%d", device, getuid(), getgid());
    if (mount("ghosts", folder, "fuse", MS_NOSUID | MS_NODEV, options)) return 77;
    content = ghost(BLOCKS * BLOCK);
    char *request = ghost(BLOCK + 8192);
    pid_t child = fork();
    if (child == 0) {
        /* Two, so that the first process can be found waiting. */
        close(device);
        pid_t user = fork();
        if (user == 0) _exit(use(folder));
        int status = -1;
        waitpid(user, &status, 0);
        umount2(folder, MNT_DETACH);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 9);
    }
    CHECK(child > 0);
    while (serve(request)) {}
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 5 << 8);
    CHECK(written == BLOCKS && read_back == BLOCKS);
    puts("ok");
    return 0;
}
