/* The compiled sync gate: from the decision to sync to the waking of waiters in one call that does not hold the GIL.
 * Below it, zeroing a file and populating a mapping, each in one such call.
 *
 * A thread that had to win the GIL back after its sync would notice it milliseconds late beside a busy thread.
 * The twin, mmwal/log/gate.py, has the same steps in Python; tests/disk/test_gate.py holds both to one behaviour.
 * The words are those of mmwal/kernel/interface.py.
 *
 * - Whoever turns the role word from 0 to 1 holds the role; nobody else syncs, moves `durable` or counts.
 * - A sync covers what was published when it began. `durable` moves (release) only after it succeeded.
 * - A failed sync is final: errno word, then the poisoned byte; `durable` stands still.
 * - A ring slot may be emptied and its segment unmapped as soon as `durable` covers it, so the holder touches none
 *   after that store.
 * - No wake-up is lost: the epoch is read before the conditions, and moves after each of them has changed.
 */

#ifndef __linux__
#error "futexes are Linux's; elsewhere mmwal uses the gate in Python"
#endif

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <math.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- the cursor block, as mmwal/kernel/interface.py lays it out */

enum {
    BLOCK_BYTES = 4096,
    PUBLISHED = 64,
    DURABLE = 128,
    STATE = 192,
    GATE_ROLE = 256,
    GATE_EPOCH = 260,
    GATE_WAITERS = 264,
    GATE_ERRNO = 268,
    GATE_SYNCS = 272,
    GATE_BYTES = 280,
    GATE_NS = 288,
    GATE_NS_MAX = 296,
    GATE_NS_LAST = 304,
    RING = 1024,
    RING_SLOTS = 16,
    RING_SLOT_BYTES = 32,
};
#define STATE_POISONED 1
#ifndef UNMAP_PAGES_LEAST
#define UNMAP_PAGES_LEAST 4
#endif

/* ---- the segment, as mmwal/format/segment.py lays it out */

enum { DATA_OFFSET = 8192, FOOTER_BYTES = 512, SEGMENT_BYTES_MIN = 16384 };

#define NS_PER_S 1000000000LL
#define FOREVER INT64_MAX
#define UNPUBLISHED_WAIT_NS 1000000LL /* publishing wakes nobody, so look again */

typedef struct {
    PyObject_HEAD
    Py_buffer block;
    unsigned char *words;
    uint64_t segment_bytes;
    uint64_t page_bytes;
} Gate;

static uint64_t *u64_at(Gate *gate, int offset) { return (uint64_t *)(void *)(gate->words + offset); }
static uint32_t *u32_at(Gate *gate, int offset) { return (uint32_t *)(void *)(gate->words + offset); }

static uint64_t load_acquire(Gate *gate, int offset) { return __atomic_load_n(u64_at(gate, offset), __ATOMIC_ACQUIRE); }

static int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS_PER_S + now.tv_nsec;
}

/* ---- the futex */

/* Sleeps while the epoch is `seen`, at most until the deadline. Returns EINTR after a signal, else 0: look again. */
static int sleep_while(Gate *gate, uint32_t seen, int64_t deadline_ns)
{
    struct timespec deadline = {(time_t)(deadline_ns / NS_PER_S), (long)(deadline_ns % NS_PER_S)};
    __atomic_add_fetch(u32_at(gate, GATE_WAITERS), 1, __ATOMIC_SEQ_CST);
    long result = syscall(SYS_futex, u32_at(gate, GATE_EPOCH), FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, seen,
                          deadline_ns == FOREVER ? NULL : &deadline, NULL, FUTEX_BITSET_MATCH_ANY);
    int interrupted = result < 0 && errno == EINTR;
    __atomic_sub_fetch(u32_at(gate, GATE_WAITERS), 1, __ATOMIC_SEQ_CST);
    return interrupted ? EINTR : 0;
}

/* A waiter either counts itself before we look, and is woken, or reads the new epoch, and does not sleep. */
static void announce(Gate *gate)
{
    __atomic_add_fetch(u32_at(gate, GATE_EPOCH), 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(u32_at(gate, GATE_WAITERS), __ATOMIC_SEQ_CST) != 0)
        syscall(SYS_futex, u32_at(gate, GATE_EPOCH), FUTEX_WAKE_BITSET | FUTEX_PRIVATE_FLAG, INT_MAX, NULL, NULL,
                FUTEX_BITSET_MATCH_ANY);
}

/* ---- what the holder of the role does */

/* Syncs the pages of [start, end), positions within the frames of one segment. Returns 0 or an errno. */
static int sync_segment(Gate *gate, uint64_t number, uint64_t start, uint64_t end, uint64_t *synced_bytes)
{
    int slot = RING + (int)(number % RING_SLOTS) * RING_SLOT_BYTES;
    if (load_acquire(gate, slot) != number + 1)
        return EFAULT; /* not attached: the promise of the ring is broken */
    uint64_t address = load_acquire(gate, slot + 8);
    uint64_t page = gate->page_bytes, base = number * gate->segment_bytes;
    uint64_t first = (start - base) / page * page;
    uint64_t stop = (end - base + page - 1) / page * page;
    if (stop > gate->segment_bytes)
        stop = gate->segment_bytes;
    *synced_bytes += stop - first;
    /* Write-back takes the write access from each mapped page by itself, with a flush of the TLB that also interrupts
     * the core that appends. So we let go of the mapping of whole pages first, all at once: their content and that they
     * are dirty stays with the file's cache, and nobody appends to them again. The last page is still being filled. */
    if (stop - first >= UNMAP_PAGES_LEAST * page)
        madvise((void *)(uintptr_t)(address + first), (size_t)(stop - first - page), MADV_DONTNEED);
    return msync((void *)(uintptr_t)(address + first), (size_t)(stop - first), MS_SYNC) == 0 ? 0 : errno;
}

/* Syncs [durable, published), segment by segment. What lies between two segments' frames needs no sync; the page that
 * ends a segment's frames is the last of its file, so the footer is in it. */
static int sync_range(Gate *gate, uint64_t durable, uint64_t published, uint64_t *synced_bytes)
{
    uint64_t size = gate->segment_bytes;
    for (uint64_t number = durable / size; number * size < published; number++) {
        uint64_t start = number * size + DATA_OFFSET, end = (number + 1) * size - FOOTER_BYTES;
        if (start < durable)
            start = durable;
        if (end > published)
            end = published;
        if (start >= end)
            continue;
        int code = sync_segment(gate, number, start, end, synced_bytes);
        if (code != 0)
            return code;
    }
    return 0;
}

static void count(Gate *gate, uint64_t synced_bytes, uint64_t took_ns)
{
    __atomic_add_fetch(u64_at(gate, GATE_SYNCS), 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(u64_at(gate, GATE_BYTES), synced_bytes, __ATOMIC_RELAXED);
    __atomic_add_fetch(u64_at(gate, GATE_NS), took_ns, __ATOMIC_RELAXED);
    if (took_ns > __atomic_load_n(u64_at(gate, GATE_NS_MAX), __ATOMIC_RELAXED))
        __atomic_store_n(u64_at(gate, GATE_NS_MAX), took_ns, __ATOMIC_RELAXED);
    __atomic_store_n(u64_at(gate, GATE_NS_LAST), took_ns, __ATOMIC_RELAXED);
}

static void poison(Gate *gate, int code)
{
    __atomic_store_n(u32_at(gate, GATE_ERRNO), (uint32_t)code, __ATOMIC_RELAXED);
    __atomic_store_n(gate->words + STATE, STATE_POISONED, __ATOMIC_RELEASE); /* the bit has a byte to itself */
}

static void sync_published(Gate *gate)
{
    uint64_t durable = load_acquire(gate, DURABLE);
    uint64_t published = load_acquire(gate, PUBLISHED); /* late: all that was published by now shares this sync */
    if (published <= durable)
        return;
    uint64_t synced_bytes = 0;
    int64_t started_ns = monotonic_ns();
    int code = sync_range(gate, durable, published, &synced_bytes);
    if (code != 0) {
        poison(gate, code);
        return;
    }
    count(gate, synced_bytes, (uint64_t)(monotonic_ns() - started_ns));
    __atomic_store_n(u64_at(gate, DURABLE), published, __ATOMIC_RELEASE);
}

static int take_role(Gate *gate)
{
    uint32_t nobody = 0;
    return __atomic_compare_exchange_n(u32_at(gate, GATE_ROLE), &nobody, 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static void release_role(Gate *gate)
{
    __atomic_store_n(u32_at(gate, GATE_ROLE), 0, __ATOMIC_RELEASE);
    announce(gate);
}

/* ---- what everybody does */

typedef enum { COVERED, TIMED_OUT, INTERRUPTED, POISONED } Outcome;

/* Runs without the GIL. */
static Outcome reach(Gate *gate, uint64_t lsn, int64_t deadline_ns, int may_sync)
{
    for (;;) {
        uint32_t seen = __atomic_load_n(u32_at(gate, GATE_EPOCH), __ATOMIC_SEQ_CST);
        if (__atomic_load_n(gate->words + STATE, __ATOMIC_ACQUIRE) & STATE_POISONED)
            return POISONED;
        if (load_acquire(gate, DURABLE) >= lsn)
            return COVERED;
        int64_t until_ns = deadline_ns;
        if (may_sync && __atomic_load_n(u32_at(gate, GATE_ROLE), __ATOMIC_SEQ_CST) == 0) {
            if (load_acquire(gate, PUBLISHED) > load_acquire(gate, DURABLE)) {
                if (take_role(gate)) {
                    sync_published(gate);
                    release_role(gate);
                }
                continue;
            }
            int64_t soon_ns = monotonic_ns() + UNPUBLISHED_WAIT_NS;
            until_ns = soon_ns < deadline_ns ? soon_ns : deadline_ns;
        }
        if (deadline_ns != FOREVER && monotonic_ns() >= deadline_ns)
            return TIMED_OUT;
        if (sleep_while(gate, seen, until_ns) == EINTR)
            return INTERRUPTED;
    }
}

/* ---- the Python type */

static PyObject *raise_errno(int code)
{
    errno = code;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* Reads a timeout in seconds, or None for no end. Returns -1 with an exception set. */
static int read_deadline(PyObject *timeout, int64_t *deadline_ns)
{
    *deadline_ns = FOREVER;
    if (timeout == NULL || timeout == Py_None)
        return 0;
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    if (isnan(seconds)) {
        PyErr_SetString(PyExc_ValueError, "timeout_s is not a number");
        return -1;
    }
    if (seconds < 1e9) /* longer is for ever */
        *deadline_ns = monotonic_ns() + (seconds > 0 ? (int64_t)(seconds * 1e9) : 0);
    return 0;
}

static PyObject *gate_reach(Gate *gate, PyObject *args, PyObject *kwargs, int may_sync)
{
    static char *names[] = {"lsn", "timeout_s", NULL};
    PyObject *position, *timeout = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O", names, &position, &timeout))
        return NULL;
    uint64_t lsn = PyLong_AsUnsignedLongLong(position);
    if (lsn == (uint64_t)-1 && PyErr_Occurred())
        return NULL;
    int64_t deadline_ns;
    if (read_deadline(timeout, &deadline_ns) < 0)
        return NULL;
    for (;;) {
        Outcome outcome;
        Py_BEGIN_ALLOW_THREADS
        outcome = reach(gate, lsn, deadline_ns, may_sync);
        Py_END_ALLOW_THREADS
        switch (outcome) {
        case COVERED:
            Py_RETURN_TRUE;
        case TIMED_OUT:
            Py_RETURN_FALSE;
        case POISONED: {
            uint32_t code = __atomic_load_n(u32_at(gate, GATE_ERRNO), __ATOMIC_RELAXED);
            return raise_errno(code != 0 ? (int)code : EIO);
        }
        case INTERRUPTED:
            if (PyErr_CheckSignals() < 0)
                return NULL;
        }
    }
}

PyDoc_STRVAR(sync_doc, "sync(lsn, timeout_s=None)\n--\n\n"
    "Returns True once `durable` covers lsn, by taking the role or by waiting; False on timeout.\n\n"
    "A sync that this call began is finished even if it outlasts the timeout.\n"
    "Raises OSError with the errno of the failed sync, now or earlier.");

static PyObject *gate_sync(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return gate_reach((Gate *)self, args, kwargs, 1);
}

PyDoc_STRVAR(wait_doc, "wait(lsn, timeout_s=None)\n--\n\nLike sync, but never takes the role.");

static PyObject *gate_wait(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return gate_reach((Gate *)self, args, kwargs, 0);
}

PyDoc_STRVAR(wake_doc, "wake()\n--\n\nLets every waiter look again (after the state word changed).");

static PyObject *gate_wake(PyObject *self, PyObject *Py_UNUSED(unused))
{
    announce((Gate *)self);
    Py_RETURN_NONE;
}

static PyObject *gate_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"block", "segment_bytes", NULL};
    PyObject *block;
    unsigned long long segment_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OK", names, &block, &segment_bytes))
        return NULL;
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    if (segment_bytes < SEGMENT_BYTES_MIN || segment_bytes % 4096 != 0) {
        PyErr_Format(PyExc_ValueError, "segment_bytes=%llu: take a multiple of 4096, at least %d", segment_bytes,
                     SEGMENT_BYTES_MIN);
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Gate *gate = (Gate *)allocate(type, 0);
    if (gate == NULL)
        return NULL;
    if (PyObject_GetBuffer(block, &gate->block, PyBUF_WRITABLE) < 0) {
        Py_DECREF(gate);
        return NULL;
    }
    gate->words = gate->block.buf;
    gate->segment_bytes = segment_bytes;
    gate->page_bytes = page_bytes;
    if (gate->block.len < BLOCK_BYTES || (uintptr_t)gate->words % 8 != 0) {
        PyErr_Format(PyExc_ValueError, "block: needs %d bytes on an 8-byte boundary, got %zd", BLOCK_BYTES,
                     gate->block.len);
        Py_DECREF(gate);
        return NULL;
    }
    return (PyObject *)gate;
}

static void gate_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Gate *gate = (Gate *)self;
    if (gate->block.obj != NULL)
        PyBuffer_Release(&gate->block);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef gate_methods[] = {
    {"sync", (PyCFunction)(void (*)(void))gate_sync, METH_VARARGS | METH_KEYWORDS, sync_doc},
    {"wait", (PyCFunction)(void (*)(void))gate_wait, METH_VARARGS | METH_KEYWORDS, wait_doc},
    {"wake", gate_wake, METH_NOARGS, wake_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(gate_doc, "Gate(block, segment_bytes)\n--\n\n"
    "The syncing role of one log over a cursor block, which it keeps; see mmwal.disk.interface.SyncGate.");

static PyType_Slot gate_slots[] = {
    {Py_tp_new, (void *)gate_new},
    {Py_tp_dealloc, (void *)gate_dealloc},
    {Py_tp_methods, gate_methods},
    {Py_tp_doc, (void *)gate_doc},
    {0, NULL},
};

static PyType_Spec gate_spec = {
    .name = "mmwal.disk._sync.Gate",
    .basicsize = sizeof(Gate),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = gate_slots,
};

/* ---- zero */

static const unsigned char zeros[4096];

/* Writes zeros in pieces that end on 4 KiB boundaries, so that the cache gets small pages. Returns 0 or an errno. */
static int write_zeros(int fd, int64_t *offset, int64_t end)
{
    while (*offset < end) {
        int64_t piece = (int64_t)sizeof zeros - *offset % (int64_t)sizeof zeros;
        if (piece > end - *offset)
            piece = end - *offset;
        ssize_t written = pwrite(fd, zeros, (size_t)piece, (off_t)*offset);
        if (written <= 0)
            return written < 0 ? errno : EIO;
        *offset += written;
    }
    return 0;
}

PyDoc_STRVAR(zero_doc, "zero(fd, offset, length)\n--\n\nWrites zeros, 4 KiB at a time, with the GIL released.");

static PyObject *zero(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd;
    long long start, length;
    if (!PyArg_ParseTuple(args, "iLL", &fd, &start, &length))
        return NULL;
    if (start < 0 || length < 0 || length > INT64_MAX - start) {
        PyErr_SetString(PyExc_ValueError, "offset and length must not be negative, nor overflow together");
        return NULL;
    }
    int64_t offset = start, end = start + length;
    for (;;) {
        int code;
        Py_BEGIN_ALLOW_THREADS
        code = write_zeros(fd, &offset, end);
        Py_END_ALLOW_THREADS
        if (code == 0)
            Py_RETURN_NONE;
        if (code != EINTR)
            return raise_errno(code);
        if (PyErr_CheckSignals() < 0)
            return NULL;
    }
}

/* ---- populate */

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* What is left of a range whose write faults are taken. */
typedef struct {
    uintptr_t start, asked, end; /* done below `start`, asked for below `asked` */
} faults;

static uintptr_t step_end(uintptr_t at, uintptr_t step, uintptr_t end)
{
    const uintptr_t next = (at / step + 1) * step;
    return next < end ? next : end;
}

/* Takes the faults a step at a time, and asks for what the disk must be read for some steps ahead. 0 or an errno. */
static int take_faults(faults *left, uintptr_t step, uintptr_t ahead)
{
    while (left->start < left->end) {
        while (left->asked < left->end && left->asked < left->start + ahead) {
            const uintptr_t stop = left->end - left->asked < step ? left->end : left->asked + step;
            madvise((void *)left->asked, stop - left->asked, MADV_WILLNEED); /* advice: its result does not matter */
            left->asked = stop;
        }
        const uintptr_t stop = step_end(left->start, step, left->end);
        if (madvise((void *)left->start, stop - left->start, MADV_POPULATE_WRITE) != 0)
            return errno;
        left->start = stop;
    }
    return 0;
}

PyDoc_STRVAR(populate_doc, "populate(address, length, step, ahead)\n--\n\n"
                           "Takes the write faults of mapped pages, with the GIL released. Returns an errno, and up to "
                           "which address they are taken.");

static PyObject *populate(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long address, length, step, ahead;
    if (!PyArg_ParseTuple(args, "KKKK", &address, &length, &step, &ahead))
        return NULL;
    if (step == 0 || length > UINTPTR_MAX - address || ahead > UINTPTR_MAX - address - length) {
        PyErr_SetString(PyExc_ValueError, "a step is at least 1, and a range must not overflow");
        return NULL;
    }
    faults left = {address, address, address + length};
    for (;;) {
        int code;
        Py_BEGIN_ALLOW_THREADS
        code = take_faults(&left, step, ahead);
        Py_END_ALLOW_THREADS
        if (code != EINTR && code != EAGAIN)
            return Py_BuildValue("iK", code, (unsigned long long)left.start);
        if (PyErr_CheckSignals() < 0)
            return NULL;
    }
}

/* ---- the module */

static PyMethodDef functions[] = {
    {"zero", zero, METH_VARARGS, zero_doc},
    {"populate", populate, METH_VARARGS, populate_doc},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&gate_spec);
    if (type == NULL)
        return -1;
    int result = PyModule_AddObjectRef(module, "Gate", type);
    Py_DECREF(type);
    return result;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)execute},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mmwal.disk._sync",
    .m_doc = "The compiled sync gate; mmwal/log/gate.py is its twin in Python.",
    .m_size = 0,
    .m_methods = functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__sync(void)
{
    return PyModuleDef_Init(&module);
}
