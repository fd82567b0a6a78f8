/* The batched eigensolver in single precision. */
#define DOUBLE 0
#define EIGH weightspace_eigh_float32
#define EXTENT weightspace_extent_float32
#define ORIENT weightspace_orient_float32
#define SELECT weightspace_select_float32
#include "problem.h"
#include "layout.h"
#include "householder.h"
#include "implicit_ql.h"
#include "jacobi.h"
#include "psd_projection.h"
#include "batch.h"
#include "lapack_frame.h"
#include "selection.h"
