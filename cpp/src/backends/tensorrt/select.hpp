#pragma once

#include <string>

#include "densenet_deploy/bundle.hpp"

/// Which engine of a bundle runs on a device, and for every other one what stands against it; the
/// rules of the Python package.
namespace densenet_deploy::detail {

/// The device and library that an engine has to fit.
struct Site {
  Backend backend = Backend::tensorrt;
  std::string version;             ///< Of the library, such as `10.16.1.11`.
  std::string compute_capability;  ///< Such as `8.9`.
};

/// The engine of a precision that fits; of several the one most closely made for the device.
///
/// @throws BackendError  None fits; says for every one which part differs.
const EngineFile& choose_engine(const Bundle& bundle, Precision precision, const Site& site);

/// What an engine needs that it does not find, as a clause; empty if it fits.
std::string misfit(const EngineFile& engine, const Site& site);

}  // namespace densenet_deploy::detail
