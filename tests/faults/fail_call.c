// Makes one call of the C library on files below a folder fail: for LD_PRELOAD, with `arm` and
// `disarm` for ctypes. What opens, writes, syncs, closes, renames or deletes there is counted.
//
// Syncs are not handed on to the disk: a test has hundreds of saves. A close that fails has closed,
// as on Linux. A short write takes half of what it was given.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { most_descriptors = 4096, short_write = -1 };

static char folder[PATH_MAX];
static char kind[32];
static char failed_on[PATH_MAX];
static long failing_call, calls, failed;
static int error_number;
static char inside[most_descriptors];  // descriptors of files and folders below `folder`

// Counts calls of `name` below `below`; from now on the k-th fails with `error` (0: none does,
// short_write: a write that is short).
void arm(const char* below, const char* name, long k, int error) {
  snprintf(folder, sizeof folder, "%s", below);
  snprintf(kind, sizeof kind, "%s", name);
  failing_call = k;
  error_number = error;
  calls = failed = 0;
  failed_on[0] = 0;
}

// Calls counted since `arm`.
long disarm(void) {
  folder[0] = 0;
  return calls;
}

// How many calls were made to fail, and the path of the last.
long failures(void) { return failed; }
const char* failure_path(void) { return failed_on; }

static int below(const char* path) {
  return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int below_at(int descriptor, const char* path) {
  if (path && path[0] == '/') return below(path);
  return folder[0] && descriptor >= 0 && descriptor < most_descriptors && inside[descriptor];
}

static int fails(const char* name, int here, const char* path) {
  if (!here || strcmp(name, kind) != 0 || ++calls != failing_call || error_number == 0) return 0;
  ++failed;
  snprintf(failed_on, sizeof failed_on, "%s", path ? path : "");
  return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL_IF(name, here, path) \
  if (fails(name, here, path)) {  \
    errno = error_number;         \
    return -1;                    \
  }

static int opened(int descriptor, int here) {
  if (descriptor >= 0 && descriptor < most_descriptors) inside[descriptor] = (char)here;
  return descriptor;
}

#define MODE(flags)                      \
  mode_t mode = 0;                       \
  if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list rest;                        \
    va_start(rest, flags);               \
    mode = va_arg(rest, mode_t);         \
    va_end(rest);                        \
  }

int open(const char* path, int flags, ...) {
  MODE(flags)
  FAIL_IF("open", below(path), path)
  return opened(NEXT(open)(path, flags, mode), below(path));
}

int openat(int at, const char* path, int flags, ...) {
  MODE(flags)
  FAIL_IF("open", below_at(at, path), path)
  return opened(NEXT(openat)(at, path, flags, mode), below_at(at, path));
}

#ifdef __GLIBC__
int open64(const char* path, int flags, ...) {
  MODE(flags)
  FAIL_IF("open", below(path), path)
  return opened(NEXT(open64)(path, flags, mode), below(path));
}

int openat64(int at, const char* path, int flags, ...) {
  MODE(flags)
  FAIL_IF("open", below_at(at, path), path)
  return opened(NEXT(openat64)(at, path, flags, mode), below_at(at, path));
}
#endif

static int known(int descriptor) {
  return folder[0] && descriptor >= 0 && descriptor < most_descriptors && inside[descriptor];
}

ssize_t write(int descriptor, const void* data, size_t size) {
  if (fails("write", known(descriptor), "")) {
    if (error_number == short_write) return NEXT(write)(descriptor, data, (size + 1) / 2);
    errno = error_number;
    return -1;
  }
  return NEXT(write)(descriptor, data, size);
}

int fsync(int descriptor) {
  FAIL_IF("fsync", known(descriptor), "")
  return known(descriptor) ? 0 : NEXT(fsync)(descriptor);
}

int close(int descriptor) {
  int here = known(descriptor);
  opened(descriptor, 0);
  int result = NEXT(close)(descriptor);
  FAIL_IF("close", here, "")
  return result;
}

int mkdir(const char* path, mode_t mode) {
  FAIL_IF("mkdir", below(path), path)
  return NEXT(mkdir)(path, mode);
}

int rename(const char* from, const char* to) {
  FAIL_IF("rename", below(from), from)
  return NEXT(rename)(from, to);
}

int unlink(const char* path) {
  FAIL_IF("unlink", below(path), path)
  return NEXT(unlink)(path);
}

int rmdir(const char* path) {
  FAIL_IF("rmdir", below(path), path)
  return NEXT(rmdir)(path);
}

int unlinkat(int at, const char* path, int flags) {
  FAIL_IF(flags & AT_REMOVEDIR ? "rmdir" : "unlink", below_at(at, path), path)
  return NEXT(unlinkat)(at, path, flags);
}
