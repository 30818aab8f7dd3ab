#pragma once

/// Everything the library has: open a bundle, load one of its graphs, classify images, measure.
#include "densenet_deploy/bundle.hpp"
#include "densenet_deploy/classifier.hpp"
#include "densenet_deploy/engine.hpp"
#include "densenet_deploy/error.hpp"
#include "densenet_deploy/image.hpp"
#include "densenet_deploy/measure.hpp"
#include "densenet_deploy/names.hpp"
#include "densenet_deploy/output_file.hpp"
#include "densenet_deploy/parity.hpp"
#include "densenet_deploy/preprocessing.hpp"
#include "densenet_deploy/tensor.hpp"
