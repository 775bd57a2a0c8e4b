# The environment and the experiments in one image; each step is a target of the Makefile.
#
#     docker build -t attention-pruning .
#     mkdir -p runs
#     docker run --rm --user "$(id -u)" -v "$PWD/runs:/attention-pruning/runs" -v "$PWD/results:/attention-pruning/results" \
#         attention-pruning
#
# runs `make figure` and leaves it in results/. Words behind the name of the image are for make: figure CONFIG=smoke, test.
FROM python:3.11-slim

RUN apt-get update && apt-get install --yes --no-install-recommends g++ git make && rm -rf /var/lib/apt/lists/*

# Without a GPU in the build, torch comes from this index; --build-arg TORCH_INDEX= takes the default one, with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /attention-pruning
# What the environment is made of comes first, so that a change of the experiments does not install it again.
COPY Makefile MANIFEST.in README.md LICENSE pyproject.toml requirements.lock setup.py ./
COPY attention_pruning attention_pruning
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=$TORCH_INDEX make install PYTHON=python
COPY . .

# Any user may run the image, Apptainer's included: folders that runs make lie here, caches in /tmp.
RUN chmod a+rwx . results
ENV HOME=/tmp USER=anyone

# Apptainer starts in a folder of the host, hence the name of this one.
ENTRYPOINT ["make", "-C", "/attention-pruning"]
CMD ["figure"]
