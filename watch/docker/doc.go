// SPDX-License-Identifier: Apache-2.0

// Package docker finds the containers of a Docker engine in the cgroup tree.
package docker
