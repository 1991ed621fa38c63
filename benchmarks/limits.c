/* What the machine can do at best, for append.py to stand beside: compiled while the benchmark runs, never shipped.
 *
 * - nothing:    a method with the arguments of the kernel's append that does nothing: the call floor.
 * - populate:   takes the write faults of a mapping, so that no later store in it faults.
 * - memory:     copies records into a mapping one after the other and checksums each: the memory limit.
 * - checksum:   checksums a buffer, with the GIL released: the limit of whoever verifies a log.
 * - copy:       fills rows of a mapping, strided as the matrix, with the GIL released: that of whoever fills it.
 * - wait_until: spins with the GIL released: a caller that is busy elsewhere, and no sleep that cools the caches.
 * - nap:        sleeps with the GIL released, then says how long it took to get the GIL back.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "../mmwal/kernel/crc32.h"

#define HEADER_BYTES 64 /* what the log puts before a vector: the copies lie as far apart as they do there */
#define PAGE_BYTES 4096

static long long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static PyObject *nothing(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    (void)args;
    (void)count;
    Py_RETURN_NONE;
}

static PyObject *populate(PyObject *Py_UNUSED(module), PyObject *argument)
{
    Py_buffer view;
    if (PyObject_GetBuffer(argument, &view, PyBUF_WRITABLE) != 0)
        return NULL;
    volatile unsigned char *bytes = view.buf;
    for (Py_ssize_t at = 0; at < view.len; at += PAGE_BYTES)
        bytes[at] = bytes[at];
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyObject *memory(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer to, from;
    Py_ssize_t record_bytes, start, count;
    if (!PyArg_ParseTuple(args, "w*y*nnn", &to, &from, &record_bytes, &start, &count))
        return NULL;
    PyObject *result = NULL;
    const Py_ssize_t step = (HEADER_BYTES + record_bytes + 63) / 64 * 64, records = from.len / (record_bytes ? record_bytes : 1);
    if (record_bytes < 64 || records < 1 || start < 0 || count < 1 || (start + count) * step > to.len) {
        PyErr_SetString(PyExc_ValueError, "the records do not fit");
        goto done;
    }
    uint32_t sum = 0;
    const long long started_ns = now_ns();
    for (Py_ssize_t i = 0; i < count; i++) {
        uint8_t *at = (uint8_t *)to.buf + (start + i) * step + HEADER_BYTES;
        memcpy(at, (const uint8_t *)from.buf + i % records * record_bytes, (size_t)record_bytes);
        sum ^= mm_crc32(0, at, (size_t)record_bytes);
    }
    const long long took_ns = now_ns() - started_ns;
    result = Py_BuildValue("dk", (double)took_ns / (double)count, (unsigned long)sum);
done:
    PyBuffer_Release(&to);
    PyBuffer_Release(&from);
    return result;
}

static PyObject *checksum(PyObject *Py_UNUSED(module), PyObject *argument)
{
    Py_buffer view;
    uint32_t sum;
    if (PyObject_GetBuffer(argument, &view, PyBUF_SIMPLE) != 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    sum = mm_crc32(0, view.buf, (size_t)view.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(sum);
}

static PyObject *copy(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer to, from;
    Py_ssize_t row_bytes, stride;
    if (!PyArg_ParseTuple(args, "w*y*nn", &to, &from, &row_bytes, &stride))
        return NULL;
    const bool sound = row_bytes > 0 && row_bytes <= stride && from.len >= row_bytes;
    if (sound) {
        const Py_ssize_t given = from.len / row_bytes;
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t row = 0; (row + 1) * stride <= to.len; row++)
            memcpy((uint8_t *)to.buf + row * stride, (const uint8_t *)from.buf + row % given * row_bytes, (size_t)row_bytes);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&to);
    PyBuffer_Release(&from);
    if (!sound)
        return PyErr_Format(PyExc_ValueError, "the rows do not fit");
    Py_RETURN_NONE;
}

static PyObject *wait_until(PyObject *Py_UNUSED(module), PyObject *argument)
{
    const long long until_ns = PyLong_AsLongLong(argument);
    if (until_ns == -1 && PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    while (now_ns() < until_ns)
        ;
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *nap(PyObject *Py_UNUSED(module), PyObject *argument)
{
    const long long length_ns = PyLong_AsLongLong(argument);
    if (length_ns == -1 && PyErr_Occurred())
        return NULL;
    const struct timespec length = {(time_t)(length_ns / 1000000000), (long)(length_ns % 1000000000)};
    long long awake_ns;
    Py_BEGIN_ALLOW_THREADS
    nanosleep(&length, NULL);
    awake_ns = now_ns();
    Py_END_ALLOW_THREADS
    return PyLong_FromLongLong(now_ns() - awake_ns);
}

static PyMethodDef methods[] = {
    {"nothing", (PyCFunction)(void (*)(void))nothing, METH_FASTCALL, NULL},
    {"populate", populate, METH_O, NULL},
    {"memory", memory, METH_VARARGS, NULL},
    {"checksum", checksum, METH_O, NULL},
    {"copy", copy, METH_VARARGS, NULL},
    {"wait_until", wait_until, METH_O, NULL},
    {"nap", nap, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "mmwal_limits", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit_mmwal_limits(void)
{
    mm_crc32_init();
    return PyModule_Create(&definition);
}
