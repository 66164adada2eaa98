# Runs bundles on a CPU: neither torch nor onnx. No image was built from this file where it was
# written; its steps were run in a fresh virtual environment (make test-package).
#
#     docker build -t regcache .
#     docker run --rm -v "$PWD/bundles:/bundles:ro" regcache verify /bundles/X.regcache
FROM python:3.13-slim AS build
COPY . /src
RUN python -m venv /opt/regcache && /opt/regcache/bin/pip install --no-cache-dir '/src[cpu]'

FROM python:3.13-slim
COPY --from=build /opt/regcache /opt/regcache
ENV PATH=/opt/regcache/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --create-home regcache
USER regcache
ENTRYPOINT ["regcache"]
CMD ["doctor"]
