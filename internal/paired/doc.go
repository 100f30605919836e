// SPDX-License-Identifier: Apache-2.0

// Package paired estimates ratios of measurements that were taken in pairs, on a machine that is noisy: the two
// sides of a pair saw the same noise. In come the ratios of the pairs; out go their median and how far it can be
// trusted. It measures nothing itself.
package paired
