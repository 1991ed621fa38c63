/* What _directory.c adds to the module of _kernel.c. */
#ifndef MMWAL_DIRECTORY_FACE_H
#define MMWAL_DIRECTORY_FACE_H

#include <Python.h>

int mm_add_directory(PyObject *module); /* the type Directory; 0, or -1 and an exception */
PyObject *mm_id_seeds(PyObject *module, PyObject *args);

#endif
