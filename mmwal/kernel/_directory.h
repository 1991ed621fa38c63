/* Python's face of directory.h and replay.h: the type Directory and the function id_seeds; a part of _kernel.c.
 *
 * Here: arguments to pointers and lengths. Not here: any rule; those stand in the headers. The interface is described in
 * interface.py, the readable twin is directory.py.
 *
 *   - Every method holds the GIL throughout, so it is one step for other threads; but for those that pack many rows, which
 *     keep their names as long as somebody pins them.
 *   - A block is checked before anything of it is used, and every row before it is touched.
 */
#ifndef MMWAL_DIRECTORY_FACE_H
#define MMWAL_DIRECTORY_FACE_H

#include <Python.h>

#include "crc32.h"
#include "replay.h"

typedef struct {
    PyObject_HEAD
    mm_directory directory;
} Directory;

/* What is shorter is done sooner than the GIL is had back. */
#define ROWS_WITH_GIL 1024

#define IDS_AHEAD 16 /* in a block: their slots are on the way from memory */

/* Without the GIL where there is much to do. */
#define WITHOUT_GIL(much, step)                                                                                        \
    do {                                                                                                               \
        PyThreadState *released = (much) ? PyEval_SaveThread() : NULL;                                                 \
        step;                                                                                                          \
        if (released != NULL)                                                                                          \
            PyEval_RestoreThread(released);                                                                            \
    } while (0)

/* ---- arguments */

/* 1: done, 0: nothing that could be an id, -1: an exception. `number` is where an int's bytes are kept. */
static int as_id(PyObject *object, mm_id *id, long long *number)
{
    if (PyUnicode_CheckExact(object)) {
        Py_ssize_t size;
        const char *bytes = PyUnicode_AsUTF8AndSize(object, &size);
        if (bytes == NULL) { /* a lone surrogate */
            if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
                return -1;
            PyErr_Clear();
            return 0;
        }
        *id = (mm_id){(const uint8_t *)bytes, (uint32_t)size, false};
        return size >= 1 && size <= MM_ID_BYTES_MAX;
    }
    if (!PyLong_CheckExact(object))
        return 0;
    int overflow;
    *number = PyLong_AsLongLongAndOverflow(object, &overflow);
    *id = (mm_id){(const uint8_t *)number, sizeof *number, true};
    return overflow == 0;
}

static bool as_row(PyObject *object, int64_t *row)
{
    const long long value = PyLong_AsLongLong(object);
    *row = value;
    if (value == -1 && PyErr_Occurred())
        return false;
    if (value < 0 || value >= MM_ROWS_MAX)
        PyErr_Format(PyExc_ValueError, "row %lld is out of range", value);
    return value >= 0 && value < MM_ROWS_MAX;
}

/* A contiguous array of one dimension with items of `size` bytes and one of the formats. */
static bool get_items(PyObject *object, Py_buffer *view, const char *name, Py_ssize_t size, const char *formats,
                      int flags)
{
    if (PyObject_GetBuffer(object, view, PyBUF_ND | PyBUF_FORMAT | flags) != 0)
        return false;
    const char *found = view->format != NULL ? view->format : "B";
    if (view->ndim == 1 && view->itemsize == size && strchr(formats, found[0]) != NULL && found[1] == 0)
        return true;
    PyErr_Format(PyExc_TypeError, "a contiguous one-dimensional array of %s is needed", name);
    PyBuffer_Release(view);
    view->obj = NULL;
    return false;
}

static bool get_rows(PyObject *object, Py_buffer *view, int flags)
{
    return get_items(object, view, "int64", 8, "ql", flags);
}

static bool rows_in_range(const Py_buffer *rows, int64_t least)
{
    const int64_t *row = rows->buf;
    for (Py_ssize_t i = 0; i < rows->shape[0]; i++)
        if (row[i] < least || row[i] >= MM_ROWS_MAX) {
            PyErr_Format(PyExc_ValueError, "row %lld is out of range", (long long)row[i]);
            return false;
        }
    return true;
}

static bool is_sound(const char *problem)
{
    if (problem != NULL)
        PyErr_SetString(PyExc_ValueError, problem);
    return problem == NULL;
}

static PyObject *row_or_none(int64_t row)
{
    if (row == MM_NO_ROW)
        Py_RETURN_NONE;
    return PyLong_FromLongLong(row);
}

/* ---- one id, one row */

static PyObject *directory_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Directory", names))
        return NULL;
    uint64_t key[2];
    for (int i = 0; i < 2; i++) { /* the interpreter's hash of a str is keyed at random: a key that nobody can guess */
        PyObject *text = PyUnicode_FromFormat("mmwal directory %d", i);
        if (text == NULL)
            return NULL;
        key[i] = (uint64_t)PyObject_Hash(text) | 1;
        Py_DECREF(text);
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Directory *self = (Directory *)allocate(type, 0);
    if (self != NULL)
        memcpy(self->directory.key, key, sizeof key);
    return (PyObject *)self;
}

static void directory_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    mm_free_directory(&((Directory *)object)->directory);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static Py_ssize_t directory_len(PyObject *object) { return (Py_ssize_t)((Directory *)object)->directory.count; }

static int directory_contains(PyObject *object, PyObject *given)
{
    mm_id id;
    long long number;
    const int taken = as_id(given, &id, &number);
    return taken == 1 ? mm_find_id(&((Directory *)object)->directory, &id) != MM_NO_ROW : taken;
}

static PyObject *directory_get(PyObject *object, PyObject *given)
{
    mm_id id;
    long long number;
    const int taken = as_id(given, &id, &number);
    if (taken < 0)
        return NULL;
    return row_or_none(taken ? mm_find_id(&((Directory *)object)->directory, &id) : MM_NO_ROW);
}

static PyObject *directory_pop(PyObject *object, PyObject *given)
{
    mm_id id;
    long long number;
    const int taken = as_id(given, &id, &number);
    const int64_t row = taken == 1 ? mm_pop_id(&((Directory *)object)->directory, &id) : MM_NO_ROW;
    if (taken >= 0 && row == MM_NO_ROW)
        PyErr_SetObject(PyExc_KeyError, given);
    return row == MM_NO_ROW ? NULL : PyLong_FromLongLong(row);
}

static PyObject *directory_put(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    mm_id id;
    long long number;
    int64_t row, before;
    char *meta = NULL;
    Py_ssize_t meta_bytes = 0;
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "put takes an id, a row and metadata, not %zd arguments", count);
    const int taken = as_id(args[0], &id, &number);
    if (taken == 0)
        PyErr_Format(PyExc_ValueError, "%R is no id", args[0]);
    if (taken < 1 || !as_row(args[1], &row) ||
        (args[2] != Py_None && PyBytes_AsStringAndSize(args[2], &meta, &meta_bytes) != 0))
        return NULL;
    if ((uint64_t)meta_bytes >= MM_NO_METADATA)
        return PyErr_Format(PyExc_ValueError, "metadata of %zd bytes is too long", meta_bytes);
    if (!mm_put_id(&((Directory *)object)->directory, &id, row, (const uint8_t *)meta, (uint32_t)meta_bytes, &before))
        return PyErr_NoMemory();
    return row_or_none(before);
}

static PyObject *directory_name(PyObject *object, PyObject *given)
{
    const mm_directory *self = &((Directory *)object)->directory;
    int64_t row;
    if (!as_row(given, &row))
        return NULL;
    if (mm_kind_of(self, row) == MM_NAME_NONE)
        Py_RETURN_NONE;
    const mm_id name = mm_name(self, row);
    if (!name.is_int)
        return PyUnicode_DecodeUTF8((const char *)name.bytes, (Py_ssize_t)name.size, NULL);
    long long number;
    memcpy(&number, name.bytes, sizeof number);
    return PyLong_FromLongLong(number);
}

static PyObject *directory_metadata(PyObject *object, PyObject *given)
{
    int64_t row;
    if (!as_row(given, &row))
        return NULL;
    const mm_piece *piece = mm_metadata(&((Directory *)object)->directory, row);
    if (piece == NULL)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)piece->bytes, (Py_ssize_t)piece->size);
}

/* ---- many */

static PyObject *directory_forget(PyObject *object, PyObject *given)
{
    Py_buffer rows;
    if (!get_rows(given, &rows, 0))
        return NULL;
    const bool sound = rows_in_range(&rows, 0);
    for (Py_ssize_t i = 0; sound && i < rows.shape[0]; i++)
        mm_forget_row(&((Directory *)object)->directory, ((const int64_t *)rows.buf)[i]);
    PyBuffer_Release(&rows);
    if (!sound)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *directory_put_block(PyObject *object, PyObject *args)
{
    mm_directory *self = &((Directory *)object)->directory;
    Py_buffer ids, meta, rows = {0}, before = {0};
    PyObject *rows_given, *before_given;
    if (!PyArg_ParseTuple(args, "y*y*OO:put_block", &ids, &meta, &rows_given, &before_given))
        return NULL;
    bool done = false;
    if (get_rows(rows_given, &rows, 0) && get_rows(before_given, &before, PyBUF_WRITABLE) &&
        rows_in_range(&rows, MM_NO_ROW)) {
        const uint64_t count = (uint64_t)rows.shape[0];
        if ((uint64_t)before.shape[0] != count)
            PyErr_Format(PyExc_ValueError, "%zd places for %zd rows", before.shape[0], rows.shape[0]);
        else if (is_sound(mm_check_ids(ids.buf, (uint64_t)ids.len, count)) &&
                 is_sound(mm_check_metadata(meta.buf, (uint64_t)meta.len, count))) {
            mm_walk names = mm_walk_block(ids.buf, (uint64_t)ids.len, count), ahead = names;
            mm_walk said = mm_walk_block(meta.buf, (uint64_t)meta.len, count);
            done = true;
            for (uint64_t i = 0, expected = 0; done && i < count; i++) {
                for (; expected < count && expected < i + IDS_AHEAD; expected++) {
                    const mm_id next = mm_next_id(&ahead);
                    mm_expect_id(self, &next);
                }
                const mm_id id = mm_next_id(&names);
                uint32_t size = 0;
                const uint8_t *bytes = mm_next_metadata(&said, &size);
                const int64_t row = ((const int64_t *)rows.buf)[i];
                int64_t *was = (int64_t *)before.buf + i;
                if (row == MM_NO_ROW)
                    *was = mm_pop_id(self, &id);
                else
                    done = mm_put_id(self, &id, row, bytes, size, was);
            }
            if (!done)
                PyErr_NoMemory();
        }
    }
    PyBuffer_Release(&ids);
    PyBuffer_Release(&meta);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&before);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *each_id(PyObject *object, PyObject *args, const char *format, bool pop)
{
    mm_directory *self = &((Directory *)object)->directory;
    Py_buffer ids, out = {0};
    PyObject *out_given;
    if (!PyArg_ParseTuple(args, format, &ids, &out_given))
        return NULL;
    bool done = get_rows(out_given, &out, PyBUF_WRITABLE) &&
                is_sound(mm_check_ids(ids.buf, (uint64_t)ids.len, (uint64_t)out.shape[0]));
    if (done) {
        mm_walk names = mm_walk_block(ids.buf, (uint64_t)ids.len, (uint64_t)out.shape[0]);
        for (Py_ssize_t i = 0; i < out.shape[0]; i++) {
            const mm_id id = mm_next_id(&names);
            ((int64_t *)out.buf)[i] = pop ? mm_pop_id(self, &id) : mm_find_id(self, &id);
        }
    }
    PyBuffer_Release(&ids);
    PyBuffer_Release(&out);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *directory_find_block(PyObject *object, PyObject *args)
{
    return each_id(object, args, "y*O:find_block", false);
}

static PyObject *directory_pop_block(PyObject *object, PyObject *args)
{
    return each_id(object, args, "y*O:pop_block", true);
}

static PyObject *changed_meanwhile(PyObject *block)
{
    PyErr_SetString(PyExc_RuntimeError, "rows that were packed changed their names meanwhile");
    Py_DECREF(block);
    return NULL;
}

static PyObject *directory_pack_ids(PyObject *object, PyObject *given)
{
    const mm_directory *self = &((Directory *)object)->directory;
    Py_buffer rows;
    if (!get_rows(given, &rows, 0))
        return NULL;
    const int64_t *row = rows.buf;
    const uint64_t count = (uint64_t)rows.shape[0];
    uint64_t size, nameless;
    WITHOUT_GIL(count > ROWS_WITH_GIL, size = mm_ids_bytes(self, row, count, &nameless));
    PyObject *block = NULL;
    if (nameless < count)
        PyErr_Format(PyExc_ValueError, "row %lld has no id", (long long)row[nameless]);
    else
        block = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (block != NULL) {
        uint8_t *into = (uint8_t *)PyBytes_AsString(block);
        bool done;
        WITHOUT_GIL(count > ROWS_WITH_GIL, done = mm_write_ids(self, row, count, into, size));
        block = done ? block : changed_meanwhile(block);
    }
    PyBuffer_Release(&rows);
    return block;
}

static PyObject *directory_pack_metadata(PyObject *object, PyObject *given)
{
    const mm_directory *self = &((Directory *)object)->directory;
    Py_buffer rows;
    if (!get_rows(given, &rows, 0))
        return NULL;
    const int64_t *row = rows.buf;
    const uint64_t count = (uint64_t)rows.shape[0];
    uint64_t size;
    WITHOUT_GIL(count > ROWS_WITH_GIL, size = mm_metadata_bytes(self, row, count));
    PyObject *block = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (block != NULL) {
        uint8_t *into = (uint8_t *)PyBytes_AsString(block);
        bool done;
        WITHOUT_GIL(count > ROWS_WITH_GIL, done = mm_write_metadata(self, row, count, into, size));
        block = done ? block : changed_meanwhile(block);
    }
    PyBuffer_Release(&rows);
    return block;
}

/* ---- replay */

static PyObject *directory_replay(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"segment", "offsets", "lsns", "origin", "row_bytes", "dtype", "supply", "left",
                            "origins", "places",  "born", "died",   NULL};
    Py_buffer segment, offsets = {0}, lsns = {0}, supply = {0}, origins = {0}, places = {0}, born = {0}, died = {0};
    PyObject *offsets_given, *lsns_given, *supply_given, *origins_given, *places_given, *born_given, *died_given;
    mm_replay replay = {0};
    int origin;
    unsigned long long row_bytes, dtype, left;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*OOiKKOKOOOO:replay", names, &segment, &offsets_given, &lsns_given,
                                     &origin, &row_bytes, &dtype, &supply_given, &left, &origins_given, &places_given,
                                     &born_given, &died_given))
        return NULL;
    PyObject *result = NULL;
    if (get_rows(offsets_given, &offsets, 0) && get_items(lsns_given, &lsns, "uint64", 8, "QL", 0) &&
        get_rows(supply_given, &supply, PyBUF_WRITABLE) &&
        get_items(origins_given, &origins, "int32", 4, "i", PyBUF_WRITABLE) &&
        get_rows(places_given, &places, PyBUF_WRITABLE) &&
        get_items(born_given, &born, "uint64", 8, "QL", PyBUF_WRITABLE) &&
        get_items(died_given, &died, "uint64", 8, "QL", PyBUF_WRITABLE)) {
        const Py_ssize_t rows = origins.shape[0];
        if (offsets.shape[0] != lsns.shape[0] || left > (unsigned long long)supply.shape[0] ||
            places.shape[0] != rows || born.shape[0] < rows || died.shape[0] < rows || rows >= MM_ROWS_MAX)
            PyErr_SetString(PyExc_ValueError, "arrays of different lengths");
        else {
            replay = (mm_replay){.supply = supply.buf,
                                 .left = left,
                                 .room = (uint64_t)supply.shape[0],
                                 .origins = origins.buf,
                                 .places = places.buf,
                                 .born = born.buf,
                                 .died = died.buf,
                                 .rows = (uint64_t)rows,
                                 .row_bytes = row_bytes,
                                 .dtype = dtype};
            int reason = MM_REPLAY_DONE;
            Py_ssize_t done = 0;
            for (; done < offsets.shape[0]; done++) {
                reason = mm_replay_frame(&((Directory *)object)->directory, &replay, segment.buf, (uint64_t)segment.len,
                                         (uint64_t)((const int64_t *)offsets.buf)[done],
                                         ((const uint64_t *)lsns.buf)[done], origin);
                if (reason != MM_REPLAY_DONE)
                    break;
            }
            if (reason == MM_REPLAY_MEMORY)
                PyErr_NoMemory();
            else if (reason == MM_REPLAY_BOUNDS)
                PyErr_SetString(PyExc_ValueError, "a frame or a row is out of bounds");
            else
                result = Py_BuildValue("niKKK", done, reason, (unsigned long long)replay.left,
                                       (unsigned long long)replay.applied, (unsigned long long)replay.skipped);
        }
    }
    PyBuffer_Release(&segment);
    PyBuffer_Release(&offsets);
    PyBuffer_Release(&lsns);
    PyBuffer_Release(&supply);
    PyBuffer_Release(&origins);
    PyBuffer_Release(&places);
    PyBuffer_Release(&born);
    PyBuffer_Release(&died);
    return result;
}

/* ---- the type, and a function over blocks */

/* Without a GIL each call locks the object instead (untested until such an interpreter is at hand). */
#ifdef Py_GIL_DISABLED
#define LOCKED(type, name, parameters, ...)                                                                           \
    static type name##_locked parameters                                                                              \
    {                                                                                                                 \
        type result;                                                                                                  \
        Py_BEGIN_CRITICAL_SECTION(object);                                                                            \
        result = name(object, ##__VA_ARGS__);                                                                         \
        Py_END_CRITICAL_SECTION();                                                                                    \
        return result;                                                                                                \
    }
#define LOCKED_ONE(name) LOCKED(PyObject *, name, (PyObject * object, PyObject * given), given)
LOCKED(Py_ssize_t, directory_len, (PyObject * object))
LOCKED(int, directory_contains, (PyObject * object, PyObject *given), given)
LOCKED(PyObject *, directory_put, (PyObject * object, PyObject *const *args, Py_ssize_t count), args, count)
LOCKED(PyObject *, directory_replay, (PyObject * object, PyObject *args, PyObject *kwargs), args, kwargs)
LOCKED_ONE(directory_get)
LOCKED_ONE(directory_pop)
LOCKED_ONE(directory_name)
LOCKED_ONE(directory_metadata)
LOCKED_ONE(directory_forget)
LOCKED_ONE(directory_put_block)
LOCKED_ONE(directory_find_block)
LOCKED_ONE(directory_pop_block)
LOCKED_ONE(directory_pack_ids)
LOCKED_ONE(directory_pack_metadata)
#define METHOD(name) name##_locked
#else
#define METHOD(name) name
#endif

static PyMethodDef directory_methods[] = {
    {"get", METHOD(directory_get), METH_O, "get($self, id, /)\n--\n\nReturns the row of an id, or None."},
    {"put", FUNCTION(METHOD(directory_put)), METH_FASTCALL,
     "put($self, id, row, metadata, /)\n--\n\nLets an id stand in a row; returns its row until then, or None."},
    {"pop", METHOD(directory_pop), METH_O, "pop($self, id, /)\n--\n\nTakes an id out; returns its row. Raises KeyError."},
    {"name", METHOD(directory_name), METH_O, "name($self, row, /)\n--\n\nReturns the id of a row, or None."},
    {"metadata", METHOD(directory_metadata), METH_O, "metadata($self, row, /)\n--\n\nReturns the metadata of a row, or None."},
    {"forget", METHOD(directory_forget), METH_O, "forget($self, rows, /)\n--\n\nLets the names and metadata of rows go."},
    {"put_block", METHOD(directory_put_block), METH_VARARGS,
     "put_block($self, ids, metadata, rows, before, /)\n--\n\nPuts a block of ids; their rows until then go to before."},
    {"find_block", METHOD(directory_find_block), METH_VARARGS,
     "find_block($self, ids, out, /)\n--\n\nWrites the row of each id of a block, -1 for one that is not there."},
    {"pop_block", METHOD(directory_pop_block), METH_VARARGS,
     "pop_block($self, ids, out, /)\n--\n\nTakes the ids of a block out; writes their rows, -1 for none."},
    {"pack_ids", METHOD(directory_pack_ids), METH_O, "pack_ids($self, rows, /)\n--\n\nReturns the block of the ids of rows."},
    {"pack_metadata", METHOD(directory_pack_metadata), METH_O,
     "pack_metadata($self, rows, /)\n--\n\nReturns the block of the metadata of rows."},
    {"replay", FUNCTION(METHOD(directory_replay)), METH_VARARGS | METH_KEYWORDS,
     "replay($self, segment, offsets, lsns, origin, row_bytes, dtype, supply, left, origins, places, born, died)\n--\n\n"
     "Applies frames; returns (frames, reason, left, applied, skipped)."},
    {0},
};

static PyType_Slot directory_slots[] = {
    {Py_tp_new, directory_new},
    {Py_tp_dealloc, directory_dealloc},
    {Py_tp_methods, directory_methods},
    {Py_sq_length, METHOD(directory_len)},
    {Py_sq_contains, METHOD(directory_contains)},
    {Py_tp_doc, "The compiled directory; see mmwal.kernel.interface.Directory."},
    {0, NULL},
};

static PyType_Spec directory_spec = {
    .name = "mmwal.kernel._kernel.Directory",
    .basicsize = sizeof(Directory),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = directory_slots,
};

static int add_directory(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &directory_spec, NULL);
    if (type == NULL)
        return -1;
    const int added = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return added;
}

static void mm_id_seeds(const uint8_t *ids, uint64_t bytes, const uint64_t *lsns, uint32_t *out, uint64_t count)
{
    mm_walk names = mm_walk_block(ids, bytes, count);
    for (uint64_t i = 0; i < count; i++) {
        const mm_id id = mm_next_id(&names);
        out[i] = mm_crc32((uint32_t)(lsns[i] ^ (lsns[i] >> 32)), id.bytes, id.size);
    }
}

static PyObject *kernel_id_seeds(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer ids, lsns = {0}, out = {0};
    PyObject *lsns_given, *out_given;
    if (!PyArg_ParseTuple(args, "y*OO:id_seeds", &ids, &lsns_given, &out_given))
        return NULL;
    bool done = get_items(lsns_given, &lsns, "uint64", 8, "QL", 0) &&
                get_items(out_given, &out, "uint32", 4, "IL", PyBUF_WRITABLE);
    if (done && lsns.shape[0] != out.shape[0]) {
        PyErr_Format(PyExc_ValueError, "%zd positions and %zd places", lsns.shape[0], out.shape[0]);
        done = false;
    }
    done = done && is_sound(mm_check_ids(ids.buf, (uint64_t)ids.len, (uint64_t)out.shape[0]));
    if (done) {
        const uint64_t count = (uint64_t)out.shape[0];
        WITHOUT_GIL(count > ROWS_WITH_GIL, mm_id_seeds(ids.buf, (uint64_t)ids.len, lsns.buf, out.buf, count));
    }
    PyBuffer_Release(&ids);
    PyBuffer_Release(&lsns);
    PyBuffer_Release(&out);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

#endif
