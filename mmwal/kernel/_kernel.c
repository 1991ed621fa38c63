/* The compiled kernel: Python's face of cursor.h (append, publish), frame.h (scan, find), rows.h and crc32.h.
 * The directory of ids, which belongs to the same module, has its face in _directory.h.
 *
 * Here: arguments to pointers and lengths, and when the GIL is let go. Not here: any rule of the log; those stand in
 * the headers, without Python, so that a C program can test them under the thread sanitizer. The interface is described
 * in interface.py, the readable twin is reference.py.
 *
 *   - No system call, no sleep, no lock, no allocation beyond the objects returned.
 *   - Everything that can fail happens before mm_reserve; buffers are held until the frame is published.
 *   - `append` and `advance` touch segments under the GIL, and so does `detach`: nobody stands in a segment that goes.
 *     Without a GIL a count of those inside takes its place (untested until such an interpreter is at hand).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define FUNCTION(name) (PyCFunction)(void (*)(void)) name
#define NAMED METH_VARARGS | METH_KEYWORDS

#include "_directory.h"
#include "cursor.h"
#include "frame.h"
#include "rows.h"

#define RELEASE_BYTES 65536 /* from here on it pays to let other threads have the GIL */
#define ID_BYTES_MAX 65535
#define ID_IS_INT UINT32_C(0x80000000)
#define STRING_(x) #x
#define STRING(x) STRING_(x)

/* ---- arguments */

static bool as_u64(PyObject *number, uint64_t *value)
{
    *value = PyLong_AsUnsignedLongLong(number);
    return !(*value == UINT64_MAX && PyErr_Occurred());
}

static bool as_u64_below(PyObject *number, uint64_t end, const char *name, uint64_t *value)
{
    if (!as_u64(number, value))
        return false;
    if (*value >= end)
        PyErr_Format(PyExc_ValueError, "%s %llu is out of range", name, (unsigned long long)*value);
    return *value < end;
}

/* For PyArg_Parse's O&. */
static int convert_u64(PyObject *number, void *value) { return as_u64(number, value); }

static int convert_lsn(PyObject *number, void *value)
{
    return as_u64_below(number, MM_LSN_MAX, "position", value);
}

static int convert_size(PyObject *number, void *value) { return as_u64_below(number, MM_LSN_MAX, "size", value); }

/* A contiguous array of one dimension whose items have one of two formats (C has two names for a 64-bit integer). */
static bool get_array(PyObject *object, Py_buffer *view, const char *name, char format, char alias, int flags)
{
    if (PyObject_GetBuffer(object, view, PyBUF_ND | PyBUF_FORMAT | flags) != 0)
        return false;
    const char *found = view->format != NULL ? view->format : "B";
    const Py_ssize_t size = format == 'q' ? 8 : 4;
    if (view->ndim == 1 && view->itemsize == size && (found[0] == format || found[0] == alias) && found[1] == 0)
        return true;
    PyErr_Format(PyExc_TypeError, "a contiguous one-dimensional array of %s is needed", name);
    PyBuffer_Release(view);
    return false;
}

static bool get_int64(PyObject *object, Py_buffer *view) { return get_array(object, view, "int64", 'q', 'l', 0); }

static bool get_uint32(PyObject *object, Py_buffer *view, int flags)
{
    return get_array(object, view, "uint32", 'I', 'L', flags);
}

/* ---- the cursor object */

typedef struct {
    PyObject_HEAD
    mm_cursor log;
    int dtype;
    bool check_finite;
    uint64_t dimension;
    uint64_t row_bytes, rows; /* of the bound matrix */
    Py_buffer block, matrix, segments[MM_RING_SLOTS]; /* .obj is NULL where nothing is held */
#ifdef Py_GIL_DISABLED
    uint32_t inside; /* threads that may be in a segment: they count themselves, detach waits for none */
#endif
} Cursor;

#ifdef Py_GIL_DISABLED
static inline void enter(Cursor *self) { __atomic_add_fetch(&self->inside, 1, __ATOMIC_SEQ_CST); }
static inline void leave(Cursor *self) { __atomic_sub_fetch(&self->inside, 1, __ATOMIC_SEQ_CST); }
static void wait_for_none(Cursor *self)
{
    while (__atomic_load_n(&self->inside, __ATOMIC_SEQ_CST) != 0) {
        Py_BEGIN_ALLOW_THREADS
        Py_END_ALLOW_THREADS
    }
}
#else
static inline void enter(Cursor *self) { (void)self; }
static inline void leave(Cursor *self) { (void)self; }
static inline void wait_for_none(Cursor *self) { (void)self; }
#endif

static PyObject *cursor_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"block", "segment_bytes", "dtype", "dimension", "check_finite", NULL};
    PyObject *block;
    uint64_t segment_bytes, dimension;
    int dtype, check_finite;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO&iO&p:Cursor", names, &block, convert_size, &segment_bytes,
                                     &dtype, convert_size, &dimension, &check_finite))
        return NULL;
    if (segment_bytes < MM_SEGMENT_BYTES_MIN || segment_bytes > MM_SEGMENT_BYTES_MAX || segment_bytes % 4096 != 0)
        return PyErr_Format(PyExc_ValueError, "segment_bytes %llu is out of range or no multiple of 4096",
                            (unsigned long long)segment_bytes);
    if (dtype < 0 || dtype > 3)
        return PyErr_Format(PyExc_ValueError, "dtype %d is unknown", dtype);
    if (dimension >= UINT64_C(1) << 31)
        return PyErr_Format(PyExc_ValueError, "dimension %llu is out of range", (unsigned long long)dimension);

    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Cursor *self = (Cursor *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    if (PyObject_GetBuffer(block, &self->block, PyBUF_WRITABLE) != 0) {
        Py_DECREF(self);
        return NULL;
    }
    if (self->block.len < MM_BLOCK_BYTES || (uintptr_t)self->block.buf % 8 != 0) {
        PyErr_Format(PyExc_ValueError, "a cursor block has %d bytes on an 8-byte boundary", MM_BLOCK_BYTES);
        Py_DECREF(self);
        return NULL;
    }
    self->log.block = self->block.buf;
    self->log.segment_bytes = segment_bytes;
    self->dtype = dtype;
    self->dimension = dimension;
    self->check_finite = check_finite != 0;
    return (PyObject *)self;
}

static void cursor_dealloc(PyObject *object)
{
    Cursor *self = (Cursor *)object;
    PyTypeObject *type = Py_TYPE(object);
    for (int i = 0; i < MM_RING_SLOTS; i++)
        PyBuffer_Release(&self->segments[i]);
    PyBuffer_Release(&self->matrix);
    PyBuffer_Release(&self->block);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *cursor_word(PyObject *self, void *offset)
{
    return PyLong_FromUnsignedLongLong(mm_load(&((Cursor *)self)->log, (size_t)(uintptr_t)offset));
}

static PyObject *cursor_start(PyObject *object, PyObject *argument)
{
    const mm_cursor *log = &((Cursor *)object)->log;
    uint64_t lsn;
    if (!convert_lsn(argument, &lsn))
        return NULL;
    const uint64_t number = lsn / log->segment_bytes;
    if (lsn % MM_ALIGNMENT != 0 || lsn < mm_data_start(log, number) || lsn > mm_data_end(log, number))
        return PyErr_Format(PyExc_ValueError, "LSN %llu is not among the frames of a segment, or not on a %d-byte boundary",
                            (unsigned long long)lsn, (int)MM_ALIGNMENT);
    __atomic_store_n(mm_word(log, MM_DURABLE), lsn, __ATOMIC_SEQ_CST);
    __atomic_store_n(mm_word(log, MM_PUBLISHED), lsn, __ATOMIC_SEQ_CST);
    __atomic_store_n(mm_word(log, MM_RESERVED), lsn, __ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

static PyObject *cursor_attach(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"number", "segment", "salt", NULL};
    Cursor *self = (Cursor *)object;
    PyObject *segment;
    uint64_t number, salt;
    Py_buffer view;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&OO&:attach", names, convert_u64, &number, &segment, convert_u64,
                                     &salt))
        return NULL;
    if (number >= MM_LSN_MAX / self->log.segment_bytes)
        return PyErr_Format(PyExc_ValueError, "segment number %llu is out of range", (unsigned long long)number);
    if (PyObject_GetBuffer(segment, &view, PyBUF_WRITABLE) != 0)
        return NULL;
    if ((uint64_t)view.len != self->log.segment_bytes || (uintptr_t)view.buf % 8 != 0)
        PyErr_Format(PyExc_ValueError, "segment %llu must be %llu bytes on an 8-byte boundary",
                     (unsigned long long)number, (unsigned long long)self->log.segment_bytes);
    else if (self->segments[number % MM_RING_SLOTS].obj != NULL)
        PyErr_Format(PyExc_ValueError, "segment %llu: another is still in its slot; detach that first",
                     (unsigned long long)number);
    if (PyErr_Occurred()) {
        PyBuffer_Release(&view);
        return NULL;
    }
    self->segments[number % MM_RING_SLOTS] = view;
    mm_attach(&self->log, number, view.buf, salt);
    Py_RETURN_NONE;
}

static PyObject *cursor_detach(PyObject *object, PyObject *argument)
{
    Cursor *self = (Cursor *)object;
    uint64_t number;
    if (!as_u64(argument, &number))
        return NULL;
    if (number == UINT64_MAX || mm_load(&self->log, mm_slot(number)) != number + 1)
        return PyErr_Format(PyExc_ValueError, "segment %llu is not attached", (unsigned long long)number);
    mm_detach(&self->log, number);
    wait_for_none(self);
    PyBuffer_Release(&self->segments[number % MM_RING_SLOTS]);
    Py_RETURN_NONE;
}

static PyObject *cursor_bind_rows(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"matrix", "row_bytes", NULL};
    Cursor *self = (Cursor *)object;
    PyObject *matrix;
    uint64_t row_bytes;
    Py_buffer view = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO&:bind_rows", names, &matrix, convert_size, &row_bytes))
        return NULL;
    if (matrix != Py_None && row_bytes < 1)
        return PyErr_Format(PyExc_ValueError, "row_bytes must be at least 1");
    if (matrix != Py_None && PyObject_GetBuffer(matrix, &view, PyBUF_WRITABLE) != 0)
        return NULL;
    Py_buffer before = self->matrix;
    self->rows = 0;
    wait_for_none(self);
    self->matrix = view;
    self->row_bytes = row_bytes;
    self->rows = matrix != Py_None ? (uint64_t)view.len / row_bytes : 0;
    PyBuffer_Release(&before);
    Py_RETURN_NONE;
}

/* ---- append */

/* Logs an entry; then, where `row` is not NULL, copies the vector from the log to there. */
static int64_t log_entry(Cursor *self, const mm_entry *entry, uint8_t *row)
{
    const uint64_t sizes[] = {entry->vector_bytes, entry->ids_bytes[1], entry->meta_bytes[1]};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] > MM_SEGMENT_BYTES_MAX)
            return MM_TOO_LARGE;
    const uint64_t length = mm_entry_length(entry);
    if (length > mm_frame_bytes_max(&self->log))
        return MM_TOO_LARGE;

    mm_claim claim;
    enter(self);
    int64_t result = mm_reserve(&self->log, length, &claim);
    if (result == 0) {
        if (length >= RELEASE_BYTES && row == NULL) {
            Py_BEGIN_ALLOW_THREADS
            mm_write(&self->log, &claim, entry);
            Py_END_ALLOW_THREADS
        } else
            mm_write(&self->log, &claim, entry);
        if (row != NULL)
            mm_copy(row, claim.frame.at + sizeof(mm_header), entry->vector_bytes);
        result = mm_settle(&self->log, claim.frame.lsn + length);
    }
    leave(self);
    return result;
}

/* The block of one id: its table entry in *tag. 1: done, 0: CONVERT, -1: an exception. */
static int take_id(PyObject *id, uint32_t *tag, long long *number, mm_entry *entry)
{
    if (PyUnicode_CheckExact(id)) {
        Py_ssize_t size;
        const char *bytes = PyUnicode_AsUTF8AndSize(id, &size);
        if (bytes == NULL) { /* a lone surrogate */
            if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
                return -1;
            PyErr_Clear();
            return 0;
        }
        if (size < 1 || size > ID_BYTES_MAX)
            return 0;
        *tag = (uint32_t)size;
        entry->ids[1] = bytes;
        entry->ids_bytes[1] = (uint64_t)size;
    } else if (PyLong_CheckExact(id)) {
        int overflow;
        *number = PyLong_AsLongLongAndOverflow(id, &overflow);
        if (overflow != 0)
            return 0;
        *tag = (uint32_t)sizeof *number | ID_IS_INT;
        entry->ids[1] = number;
        entry->ids_bytes[1] = sizeof *number;
    } else
        return 0;
    entry->ids[0] = tag;
    entry->ids_bytes[0] = sizeof *tag;
    return 1;
}

/* As take_id; on 1 the caller releases the view. */
static int take_vector(const Cursor *self, PyObject *vector, Py_buffer *view, mm_entry *entry)
{
    if (PyObject_GetBuffer(vector, view, PyBUF_ND | PyBUF_FORMAT) != 0) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_ValueError) &&
            !PyErr_ExceptionMatches(PyExc_BufferError))
            return -1;
        PyErr_Clear();
        return 0;
    }
    int dtype = 0;
    if (view->ndim == 1 && view->format != NULL && view->format[0] != 0 && view->format[1] == 0)
        dtype = view->format[0] == 'f' ? 1 : view->format[0] == 'e' ? 2 : view->format[0] == 'b' ? 3 : 0;
    const uint64_t values = dtype != 0 ? (uint64_t)view->shape[0] : 0;
    if (values == 0 || (self->dtype != 0 && dtype != self->dtype) ||
        (self->dimension != 0 && values != self->dimension)) {
        PyBuffer_Release(view);
        return 0;
    }
    entry->dtype = (uint8_t)dtype;
    entry->vector = view->buf;
    entry->vector_bytes = (uint64_t)view->len;
    return 1;
}

static bool take_kind_and_time(PyObject *kind, PyObject *time_ns, mm_entry *entry)
{
    uint64_t number;
    if (!as_u64_below(kind, MM_KIND_PAD, "kind", &number) || !as_u64(time_ns, &entry->time_ns))
        return false;
    if (number == 0)
        PyErr_SetString(PyExc_ValueError, "kind 0 is out of range");
    entry->kind = (uint8_t)number;
    return number != 0;
}

static bool has_arguments(const char *name, Py_ssize_t found, Py_ssize_t expected)
{
    if (found != expected)
        PyErr_Format(PyExc_TypeError, "%s takes %zd positional arguments, %zd given", name, expected, found);
    return found == expected;
}

static PyObject *cursor_append(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    if (!has_arguments("append", count, 6))
        return NULL;
    Cursor *self = (Cursor *)object;
    PyObject *vector = args[2], *metadata = args[3];
    mm_entry entry = {.rows = 1};
    uint32_t id_tag, meta_tag;
    long long id_number;

    const long long row = PyLong_AsLongLong(args[5]);
    if ((row == -1 && PyErr_Occurred()) || !take_kind_and_time(args[0], args[4], &entry))
        return NULL;
    int taken = take_id(args[1], &id_tag, &id_number, &entry);
    if (taken <= 0)
        return taken < 0 ? NULL : PyLong_FromLong(MM_CONVERT);
    if (metadata != Py_None) {
        char *bytes;
        Py_ssize_t size;
        if (!PyBytes_CheckExact(metadata))
            return PyLong_FromLong(MM_CONVERT);
        if (PyBytes_AsStringAndSize(metadata, &bytes, &size) != 0)
            return NULL;
        meta_tag = (uint32_t)size; /* one that does not fit is refused as too large */
        entry.meta[0] = &meta_tag;
        entry.meta_bytes[0] = sizeof meta_tag;
        entry.meta[1] = bytes;
        entry.meta_bytes[1] = (uint64_t)size;
    }
    Py_buffer view;
    if (vector != Py_None) {
        taken = take_vector(self, vector, &view, &entry);
        if (taken <= 0)
            return taken < 0 ? NULL : PyLong_FromLong(MM_CONVERT);
    }

    int64_t result;
    if (row >= 0 && ((uint64_t)row >= self->rows || entry.vector_bytes > self->row_bytes))
        result = MM_CONVERT;
    else if (self->check_finite && !mm_finite(entry.vector, (size_t)entry.vector_bytes, entry.dtype))
        result = MM_NONFINITE;
    else
        result = log_entry(self, &entry, row >= 0 ? (uint8_t *)self->matrix.buf + (uint64_t)row * self->row_bytes : NULL);
    if (vector != Py_None)
        PyBuffer_Release(&view);
    return PyLong_FromLongLong(result);
}

static PyObject *cursor_append_frame(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    if (!has_arguments("append_frame", count, 8))
        return NULL;
    mm_entry entry = {0};
    uint64_t dtype, rows;
    if (!take_kind_and_time(args[0], args[4], &entry) || !as_u64_below(args[1], 4, "dtype", &dtype) ||
        !as_u64_below(args[2], UINT64_C(1) << 32, "rows", &rows) || !as_u64(args[3], &entry.txn))
        return NULL;
    entry.dtype = (uint8_t)dtype;
    entry.rows = (uint32_t)rows;

    Py_buffer views[3] = {0}; /* vectors, ids, metadata */
    PyObject *result = NULL;
    for (int i = 0; i < 3; i++)
        if (args[5 + i] != Py_None && PyObject_GetBuffer(args[5 + i], &views[i], PyBUF_SIMPLE) != 0)
            goto done;
    entry.vector = views[0].buf;
    entry.vector_bytes = (uint64_t)views[0].len;
    entry.ids[1] = views[1].buf;
    entry.ids_bytes[1] = (uint64_t)views[1].len;
    entry.meta[1] = views[2].buf;
    entry.meta_bytes[1] = (uint64_t)views[2].len;
    result = PyLong_FromLongLong(log_entry((Cursor *)object, &entry, NULL));
done:
    for (int i = 0; i < 3; i++)
        PyBuffer_Release(&views[i]);
    return result;
}

static PyObject *cursor_advance(PyObject *object, PyObject *Py_UNUSED(none))
{
    Cursor *self = (Cursor *)object;
    enter(self);
    const uint64_t published = mm_advance(&self->log);
    leave(self);
    return PyLong_FromUnsignedLongLong(published);
}

static PyMethodDef cursor_methods[] = {
    {"append", FUNCTION(cursor_append), METH_FASTCALL,
     "append($self, kind, id, vector, metadata, time_ns, row, /)\n--\n\nLogs one row; returns its LSN or a code."},
    {"append_frame", FUNCTION(cursor_append_frame), METH_FASTCALL,
     "append_frame($self, kind, dtype, rows, txn, time_ns, payload, ids, metadata, /)\n--\n\n"
     "Logs one frame of given blocks; returns its LSN or a code."},
    {"advance", cursor_advance, METH_NOARGS,
     "advance($self, /)\n--\n\nMoves `published` over every finished frame; returns it."},
    {"start", cursor_start, METH_O, "start($self, lsn, /)\n--\n\nSets reserved, published and durable."},
    {"attach", FUNCTION(cursor_attach), NAMED,
     "attach($self, number, segment, salt)\n--\n\nAdds a segment to its ring slot."},
    {"detach", cursor_detach, METH_O, "detach($self, number, /)\n--\n\nEmpties a segment's slot, lets its buffer go."},
    {"bind_rows", FUNCTION(cursor_bind_rows), NAMED,
     "bind_rows($self, matrix, row_bytes)\n--\n\nNames the matrix that `append` also copies to."},
    {0},
};

static PyGetSetDef cursor_words[] = {
    {"reserved", cursor_word, NULL, "Where the next frame begins.", (void *)MM_RESERVED},
    {"published", cursor_word, NULL, "All below is complete.", (void *)MM_PUBLISHED},
    {"durable", cursor_word, NULL, "All below survived a sync.", (void *)MM_DURABLE},
    {0},
};

static PyType_Slot cursor_slots[] = {
    {Py_tp_doc, "The write position of a log; see mmwal.kernel.interface.Cursor."},
    {Py_tp_new, cursor_new},
    {Py_tp_dealloc, cursor_dealloc},
    {Py_tp_methods, cursor_methods},
    {Py_tp_getset, cursor_words},
    {0, NULL},
};

static PyType_Spec cursor_spec = {
    .name = "mmwal.kernel._kernel.Cursor",
    .basicsize = sizeof(Cursor),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = cursor_slots,
};

/* ---- functions over memory */

static PyObject *kernel_crc32(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "seed", NULL};
    Py_buffer data;
    unsigned int seed = 0;
    uint32_t crc;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|I:crc32", names, &data, &seed))
        return NULL;
    if (data.len >= RELEASE_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        crc = mm_crc32(seed, data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS
    } else
        crc = mm_crc32(seed, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

static PyObject *kernel_all_finite(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "dtype", NULL};
    static const int sizes[] = {0, 4, 2, 1};
    Py_buffer data;
    int dtype;
    bool finite = false;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*i:all_finite", names, &data, &dtype))
        return NULL;
    const bool fits = dtype >= 1 && dtype <= 3 && data.len % sizes[dtype] == 0;
    if (!fits)
        PyErr_Format(PyExc_ValueError, "%zd bytes are no values of dtype %d", data.len, dtype);
    else if (data.len >= RELEASE_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        finite = mm_finite(data.buf, (size_t)data.len, dtype);
        Py_END_ALLOW_THREADS
    } else
        finite = mm_finite(data.buf, (size_t)data.len, dtype);
    PyBuffer_Release(&data);
    return fits ? PyBool_FromLong(finite) : NULL;
}

static bool range_inside(const Py_buffer *segment, uint64_t base, uint64_t start, uint64_t end)
{
    const uint64_t limit = base + (uint64_t)segment->len; /* both below 2^63 */
    if (base % MM_ALIGNMENT == 0 && base <= start && start <= end && end <= limit && limit < MM_LSN_MAX)
        return true;
    PyErr_Format(PyExc_ValueError, "the range %llu to %llu does not lie in the %zd bytes from %llu",
                 (unsigned long long)start, (unsigned long long)end, segment->len, (unsigned long long)base);
    return false;
}

static PyObject *kernel_scan(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"segment", "base_lsn", "salt", "start_lsn", "end_lsn", "out", "verify", NULL};
    Py_buffer segment, out;
    uint64_t base, salt, start, end;
    int verify;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*O&O&O&O&w*p:scan", names, &segment, convert_lsn, &base,
                                     convert_u64, &salt, convert_lsn, &start, convert_lsn, &end, &out, &verify))
        return NULL;
    const bool inside = range_inside(&segment, base, start, end);
    mm_scanned found = {0, 0, 0};
    if (inside) {
        const uint64_t room = (uint64_t)out.len / sizeof(mm_header);
        if (end - start >= RELEASE_BYTES) {
            Py_BEGIN_ALLOW_THREADS
            found = mm_scan(segment.buf, base, salt, start, end, out.buf, room, verify != 0);
            Py_END_ALLOW_THREADS
        } else
            found = mm_scan(segment.buf, base, salt, start, end, out.buf, room, verify != 0);
    }
    PyBuffer_Release(&segment);
    PyBuffer_Release(&out);
    if (!inside)
        return NULL;
    return Py_BuildValue("KKi", (unsigned long long)found.stop, (unsigned long long)found.count, found.reason);
}

static PyObject *kernel_find_frame(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"segment", "base_lsn", "salt", "start_lsn", "end_lsn", NULL};
    Py_buffer segment;
    uint64_t base, salt, start, end, found = MM_FIND_NONE;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*O&O&O&O&:find_frame", names, &segment, convert_lsn, &base,
                                     convert_u64, &salt, convert_lsn, &start, convert_lsn, &end))
        return NULL;
    const bool inside = range_inside(&segment, base, start, end);
    if (inside) {
        Py_BEGIN_ALLOW_THREADS
        found = mm_find(segment.buf, base, salt, start, end);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&segment);
    if (!inside)
        return NULL;
    if (found == MM_FIND_ABUSE)
        return PyErr_Format(PyExc_ValueError,
                            "too many overlapping frames with a wrong checksum: this file was made up");
    return found == MM_FIND_NONE ? PyLong_FromLong(-1) : PyLong_FromUnsignedLongLong(found);
}

static bool rows_fit(const mm_rows *matrix, const Py_buffer *rows)
{
    if (matrix->row_bytes < 1 || matrix->row_bytes > matrix->stride) {
        PyErr_Format(PyExc_ValueError, "rows of %llu bytes cannot lie %llu bytes apart",
                     (unsigned long long)matrix->row_bytes, (unsigned long long)matrix->stride);
        return false;
    }
    if (mm_rows_check(matrix, rows->buf, (size_t)rows->shape[0]) < (size_t)rows->shape[0]) {
        PyErr_SetString(PyExc_ValueError, "a row is out of bounds");
        return false;
    }
    return true;
}

static PyObject *kernel_gather(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"source", "offsets", "row_bytes", "target", "rows", "stride", NULL};
    Py_buffer source, target, offsets = {0}, rows = {0};
    PyObject *offsets_given, *rows_given;
    mm_rows to = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*OO&w*OO&:gather", names, &source, &offsets_given, convert_size,
                                     &to.row_bytes, &target, &rows_given, convert_size, &to.stride))
        return NULL;
    to.bytes = target.buf;
    to.size = (uint64_t)target.len;
    bool done = false;
    if (get_int64(offsets_given, &offsets) && get_int64(rows_given, &rows) && rows_fit(&to, &rows)) {
        const size_t count = (size_t)rows.shape[0];
        if (offsets.shape[0] != rows.shape[0])
            PyErr_Format(PyExc_ValueError, "%zd offsets for %zd rows", offsets.shape[0], rows.shape[0]);
        else if (mm_offsets_check(offsets.buf, to.row_bytes, (uint64_t)source.len, count) < count)
            PyErr_SetString(PyExc_ValueError, "an offset is out of bounds");
        else {
            Py_BEGIN_ALLOW_THREADS
            done = mm_gather(source.buf, (uint64_t)source.len, offsets.buf, &to, rows.buf, count);
            Py_END_ALLOW_THREADS
            if (!done)
                PyErr_SetString(PyExc_ValueError, "offsets or rows were changed while they were in use");
        }
    }
    PyBuffer_Release(&source);
    PyBuffer_Release(&target);
    PyBuffer_Release(&offsets);
    PyBuffer_Release(&rows);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *kernel_row_checksums(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"matrix", "rows", "row_bytes", "stride", "seeds", "out", NULL};
    Py_buffer matrix, rows = {0}, seeds = {0}, out = {0};
    PyObject *rows_given, *seeds_given, *out_given;
    mm_rows from = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*OO&O&OO:row_checksums", names, &matrix, &rows_given, convert_size,
                                     &from.row_bytes, convert_size, &from.stride, &seeds_given, &out_given))
        return NULL;
    from.bytes = matrix.buf;
    from.size = (uint64_t)matrix.len;
    bool done = false;
    if (get_int64(rows_given, &rows) && get_uint32(seeds_given, &seeds, 0) &&
        get_uint32(out_given, &out, PyBUF_WRITABLE) && rows_fit(&from, &rows)) {
        const Py_ssize_t count = rows.shape[0];
        if (seeds.shape[0] != count || out.shape[0] != count)
            PyErr_Format(PyExc_ValueError, "%zd rows, %zd seeds and %zd places for the checksums", count,
                         seeds.shape[0], out.shape[0]);
        else {
            Py_BEGIN_ALLOW_THREADS
            done = mm_row_checksums(&from, rows.buf, seeds.buf, out.buf, (size_t)count);
            Py_END_ALLOW_THREADS
            if (!done)
                PyErr_SetString(PyExc_ValueError, "rows were changed while they were in use");
        }
    }
    PyBuffer_Release(&matrix);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&seeds);
    PyBuffer_Release(&out);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef kernel_functions[] = {
    {"crc32", FUNCTION(kernel_crc32), NAMED, "crc32($module, data, seed=0)\n--\n\nReturns zlib's CRC-32 of a buffer."},
    {"all_finite", FUNCTION(kernel_all_finite), NAMED,
     "all_finite($module, data, dtype)\n--\n\nReturns whether the values hold neither NaN nor infinity."},
    {"scan", FUNCTION(kernel_scan), NAMED,
     "scan($module, segment, base_lsn, salt, start_lsn, end_lsn, out, verify)\n--\n\n"
     "Walks the frames of a range; returns (stop LSN, headers written, reason)."},
    {"find_frame", FUNCTION(kernel_find_frame), NAMED,
     "find_frame($module, segment, base_lsn, salt, start_lsn, end_lsn)\n--\n\n"
     "Returns the position of the first valid frame of a range; -1: none. Raises ValueError as the twin does,\n"
     "where frames with a wrong checksum make up more than " STRING(MM_FIND_BUDGET) " times the range."},
    {"gather", FUNCTION(kernel_gather), NAMED,
     "gather($module, source, offsets, row_bytes, target, rows, stride)\n--\n\nCopies rows to their places."},
    {"row_checksums", FUNCTION(kernel_row_checksums), NAMED,
     "row_checksums($module, matrix, rows, row_bytes, stride, seeds, out)\n--\n\nWrites each row's CRC-32."},
    {"id_seeds", kernel_id_seeds, METH_VARARGS,
     "id_seeds($module, ids, lsns, out, /)\n--\n\nWrites what each row's CRC-32 starts from."},
    {0},
};

static int kernel_exec(PyObject *module)
{
    static bool ready; /* under the import lock */
    if (!ready) {
        mm_crc32_init();
        mm_finite_init();
        ready = true;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &cursor_spec, NULL);
    if (type == NULL)
        return -1;
    const int added = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    if (added != 0 || add_directory(module) != 0)
        return -1;
    return PyModule_AddStringConstant(module, "NAME", "c");
}

static PyModuleDef_Slot kernel_slots[] = {
    {Py_mod_exec, kernel_exec},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef kernel_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mmwal.kernel._kernel",
    .m_doc = "The compiled kernel; see mmwal.kernel.interface.",
    .m_methods = kernel_functions,
    .m_slots = kernel_slots,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&kernel_module); }
