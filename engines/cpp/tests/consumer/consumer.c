/* consumer BUNDLE IMAGE   prints the most likely class */
#include <stdio.h>
#include <stdlib.h>

#include <regcache.h>

int main(int argc, char **argv) {
    regcache_model *model = NULL;
    regcache_context *context = NULL;
    regcache_prediction best;
    uint8_t *pixels;
    float *features;
    regcache_status status;

    if (argc != 3) return 2;
    status = regcache_model_open(argv[1], NULL, &model);
    if (status != REGCACHE_OK) {
        fprintf(stderr, "%s\n", regcache_last_error());
        return regcache_exit_code(status);
    }
    pixels = malloc(regcache_model_pixels_size(model));
    features = malloc((size_t)regcache_model_output_dim(model) * sizeof(float));
    if (regcache_context_create(model, &context) != REGCACHE_OK ||
        regcache_preprocess_file(context, argv[2], pixels) != REGCACHE_OK ||
        regcache_embed(context, pixels, 1, features) != REGCACHE_OK ||
        regcache_classify(context, features, 1, 1, &best) != REGCACHE_OK) {
        fprintf(stderr, "%s\n", regcache_last_error());
        return 1;
    }
    printf("%s %.4f\n", regcache_model_label(model, best.index), best.score);
    regcache_context_free(context);
    regcache_model_free(model);
    free(features);
    free(pixels);
    return 0;
}
