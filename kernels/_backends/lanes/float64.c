/* The batched eigensolver in double precision. */
#define DOUBLE 1
#define EIGH weightspace_eigh_float64
#define EXTENT weightspace_extent_float64
#define ORIENT weightspace_orient_float64
#define SELECT weightspace_select_float64
#include "problem.h"
#include "layout.h"
#include "householder.h"
#include "implicit_ql.h"
#include "jacobi.h"
#include "psd_projection.h"
#include "batch.h"
#include "lapack_frame.h"
#include "selection.h"
