/* regcache: run a `.regcache` bundle (an exported vision encoder) inside a C or C++ program.
 *
 *     regcache_model *model = NULL;
 *     if (regcache_model_open("clip.regcache", NULL, &model) != REGCACHE_OK)
 *         return fprintf(stderr, "%s\n", regcache_last_error()), 1;
 *     regcache_context *context = NULL;
 *     regcache_context_create(model, &context);
 *     uint8_t *pixels = malloc(regcache_model_pixels_size(model));
 *     float *features = malloc(regcache_model_output_dim(model) * sizeof(float));
 *     regcache_preprocess_file(context, "cat.jpg", pixels);
 *     regcache_embed(context, pixels, 1, features);
 *     regcache_prediction best;
 *     regcache_classify(context, features, 1, 1, &best);
 *     puts(regcache_model_label(model, best.index));
 *     regcache_context_free(context);
 *     regcache_model_free(model);
 *
 * Threads: a model is immutable and may be used by any number of threads at once. A context is the
 * scratch memory of one thread; make one per thread. A context keeps its model alive, so the two
 * may be freed in either order.
 *
 * Fork: ONNX Runtime does not survive it. In a forked child regcache_embed fails, and freeing gives
 * no memory back; open the model in the child.
 *
 * Network: none. ONNX Runtime's own releases send usage data unless ORT_DISABLE_TELEMETRY is 1 when
 * they load, so the first regcache_model_open sets it in the environment, unless it has a value. A
 * program whose other threads read the environment meanwhile sets it itself, before they start.
 *
 * Errors: every function that can fail returns a status and leaves a sentence for
 * regcache_last_error(). No exception leaves the library. Outputs mean something on REGCACHE_OK only.
 */
#ifndef REGCACHE_H
#define REGCACHE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define REGCACHE_API
#else
#define REGCACHE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define REGCACHE_VERSION "0.2.0"
#define REGCACHE_BUNDLE_SCHEMA 1

typedef enum regcache_status {
    REGCACHE_OK = 0,
    REGCACHE_INVALID_ARGUMENT = 1,     /* NULL, zero, or out of range */
    REGCACHE_OUT_OF_MEMORY = 2,
    REGCACHE_INTERNAL = 3,             /* a bug of ours */
    REGCACHE_IMAGE_NOT_READABLE = 10,  /* no such file, no permission, empty */
    REGCACHE_IMAGE_FORMAT = 11,        /* neither JPEG nor PNG */
    REGCACHE_IMAGE_DAMAGED = 12,
    REGCACHE_IMAGE_TOO_LARGE = 13,     /* more pixels than max_pixels, before or after resizing */
    REGCACHE_BUNDLE_NOT_FOUND = 20,    /* no folder, or no manifest in it */
    REGCACHE_BUNDLE_SCHEMA_UNKNOWN = 21,
    REGCACHE_BUNDLE_DAMAGED = 22,      /* missing, truncated, unlisted or linked file, bad JSON */
    REGCACHE_BUNDLE_CHECKSUM = 23,
    REGCACHE_BUNDLE_UNSAFE_NAME = 24,  /* a name that would leave the folder */
    REGCACHE_BUNDLE_NO_HEAD = 25,      /* no text features: it embeds but does not classify */
    REGCACHE_RUNTIME_MISSING = 30,     /* ONNX Runtime does not load, or is too old */
    REGCACHE_PROVIDER_MISSING = 31,    /* this ONNX Runtime cannot run CUDA or TensorRT here */
    REGCACHE_RUNTIME_FAILED = 32       /* the model or the run was refused, see the message */
} regcache_status;

typedef enum regcache_provider {
    REGCACHE_PROVIDER_CPU = 0,
    REGCACHE_PROVIDER_CUDA = 1,
    REGCACHE_PROVIDER_TENSORRT = 2     /* with CUDA for what TensorRT leaves over */
} regcache_provider;

typedef struct regcache_model regcache_model;
typedef struct regcache_context regcache_context;

/* Called with one line without newline, from the thread that runs. */
typedef void (*regcache_warning_callback)(const char *message, void *user_data);

typedef struct regcache_model_params {
    size_t struct_size;                /* set by the two functions of defaults */
    const char *onnxruntime_library;   /* NULL: see docs; the ONNX Runtime to load */
    int32_t threads;                   /* inside one run, at most 4096; 0: one per physical core */
    regcache_provider provider;
    int32_t device_id;                 /* CUDA and TensorRT */
    const char *engine_cache;          /* TensorRT: an existing folder for built engines, or NULL */
    int32_t fp16;                      /* TensorRT: allow float16 outside the quantized layers */
    int64_t max_pixels;                /* largest image that is decoded, width x height */
    double saturation_warning;         /* see regcache_monitor; 0 switches the warning off */
    regcache_warning_callback warning; /* NULL: warnings go to stderr */
    void *warning_user_data;
    const char *head;                  /* a file of `regcache head`, in place of the bundle's own
                                          text features; NULL: these */
    int32_t pieces;                    /* CPU. 1: a second copy of the model, with which each thread
                                          runs images of its own in regcache_embed; batches of at
                                          least one image per thread are faster. 0: one copy */
} regcache_model_params;

typedef struct regcache_prediction {
    int32_t index;                     /* class, see regcache_model_label */
    float score;                       /* softmax of logit_scale x cosine, in [0, 1] */
} regcache_prediction;

typedef struct regcache_latency_report {
    uint64_t runs;                     /* since the context was made, or since the last reset */
    uint64_t images;
    double mean_ms, p50_ms, p90_ms, p99_ms; /* of regcache_embed, of the last 65536 runs */
    double images_per_second;          /* images over time spent in regcache_embed */
} regcache_latency_report;

typedef struct regcache_probe_report {
    const char *name;                  /* the quantized tensor; lives as long as the model */
    uint64_t codes;                    /* integer codes seen */
    uint64_t low, high;                /* of these, at the lowest and at the highest code */
    double low_rate, high_rate;        /* the same, over codes; 0 where no code was seen */
    double calibrated_low_rate;        /* on the calibration images; NaN if unknown */
    double calibrated_high_rate;
} regcache_probe_report;

/* ---- the library ------------------------------------------------------------------------- */

REGCACHE_API const char *regcache_version(void);
/* Name of a status, for logs: "REGCACHE_IMAGE_FORMAT". */
REGCACHE_API const char *regcache_status_name(regcache_status status);
/* The exit code of the `regcache` commands: 0, 2 usage, 4 data, 5 bundle, 7 engine, 1 internal. */
REGCACHE_API int regcache_exit_code(regcache_status status);
/* What went wrong in this thread's last failed call, and how to mend it; "" if none failed. */
REGCACHE_API const char *regcache_last_error(void);

/* ---- the model --------------------------------------------------------------------------- */

/* The defaults, as far as `struct_size` bytes go: a program compiled with an older header has a
   shorter struct. Other languages call this. */
REGCACHE_API void regcache_model_params_init(regcache_model_params *params, size_t struct_size);
/* The same, of this header. The library has a function of this name as well, for programs that were
   compiled when it was one: it gives the fields of the first header. */
static inline regcache_model_params regcache_model_default_params(void) {
    regcache_model_params params;
    regcache_model_params_init(&params, sizeof params);
    return params;
}
/* Check every file of the bundle, then load it. `params` may be NULL. */
REGCACHE_API regcache_status regcache_model_open(const char *bundle,
                                                 const regcache_model_params *params,
                                                 regcache_model **model);
REGCACHE_API void regcache_model_free(regcache_model *model);

/* The accessors give 0 or NULL for a NULL model. */
REGCACHE_API int32_t regcache_model_height(const regcache_model *model);
REGCACHE_API int32_t regcache_model_width(const regcache_model *model);
/* Bytes of one preprocessed image: height x width x 3. */
REGCACHE_API size_t regcache_model_pixels_size(const regcache_model *model);
/* Floats of one embedding. */
REGCACHE_API int32_t regcache_model_output_dim(const regcache_model *model);
/* Images of one run where the bundle was exported for a fixed number; 0: any number. */
REGCACHE_API int32_t regcache_model_batch(const regcache_model *model);
/* Classes of the zero-shot head; 0 where the bundle has none. */
REGCACHE_API int32_t regcache_model_num_classes(const regcache_model *model);
/* UTF-8; NULL where the index is out of range or the head has no labels. */
REGCACHE_API const char *regcache_model_label(const regcache_model *model, int32_t index);
/* The encoder's name in the manifest. */
REGCACHE_API const char *regcache_model_name(const regcache_model *model);
/* What has to be said beside its results, for example that the weights are synthetic; NULL where the
 * manifest says nothing. */
REGCACHE_API const char *regcache_model_caution(const regcache_model *model);
/* Version of the ONNX Runtime that runs it. */
REGCACHE_API const char *regcache_model_onnxruntime_version(const regcache_model *model);

/* ---- one thread's work ------------------------------------------------------------------- */

REGCACHE_API regcache_status regcache_context_create(const regcache_model *model,
                                                     regcache_context **context);
REGCACHE_API void regcache_context_free(regcache_context *context);

/* An image becomes uint8 [height, width, 3] RGB, as the bundle's preprocess_cfg.json says and as
 * open_clip with Pillow does it. `pixels` holds regcache_model_pixels_size() bytes.
 * The EXIF orientation is not applied: open_clip does not apply it either. */
REGCACHE_API regcache_status regcache_preprocess_file(regcache_context *context, const char *path,
                                                      uint8_t *pixels);
/* A JPEG or PNG file in memory. */
REGCACHE_API regcache_status regcache_preprocess_encoded(regcache_context *context,
                                                         const void *data, size_t size,
                                                         uint8_t *pixels);
/* A decoded picture, 8-bit RGB; `stride` is the distance of two rows in bytes. */
REGCACHE_API regcache_status regcache_preprocess_rgb(regcache_context *context, const uint8_t *rgb,
                                                     int32_t width, int32_t height, size_t stride,
                                                     uint8_t *pixels);

/* `count` preprocessed images, one after another -> `features` [count, output_dim], not
 * L2-normalized. All of them run as one batch, or where regcache_model_batch() is not 0, which
 * must then divide `count`, in batches of that size. */
REGCACHE_API regcache_status regcache_embed(regcache_context *context, const uint8_t *pixels,
                                            size_t count, float *features);
/* The `top` best classes of each embedding, best first -> `predictions` [count, top]. Features with
   NaN are REGCACHE_INVALID_ARGUMENT. */
REGCACHE_API regcache_status regcache_classify(regcache_context *context, const float *features,
                                               size_t count, int32_t top,
                                               regcache_prediction *predictions);

REGCACHE_API regcache_status regcache_latency(const regcache_context *context,
                                              regcache_latency_report *report);
REGCACHE_API void regcache_latency_reset(regcache_context *context);

/* The outlier monitor. A bundle exported with probes gives the integer codes of a few quantized
 * tensors; regcache_embed counts those at either end of their range. When the share of one end over
 * the last 32 images or more exceeds both `saturation_warning` times that of the calibration and
 * 1e-3, the data has left the calibrated range; the warning is given once per probe and context.
 * `reports` holds regcache_model_num_probes() entries. */
REGCACHE_API int32_t regcache_model_num_probes(const regcache_model *model);
REGCACHE_API regcache_status regcache_monitor(const regcache_context *context,
                                              regcache_probe_report *reports);

#ifdef __cplusplus
}
#endif
#endif
