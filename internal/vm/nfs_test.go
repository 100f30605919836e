//go:build vm

package vm

import (
	"strings"
	"testing"
)

// The kernel's NFS server, and its client, have no labels: their sockets are of the root cgroup. A workload reaches the
// server if it may reach what is unlabelled. What it reads from a file system that is mounted is no traffic of its own.
func TestNFSOfTheKernel(t *testing.T) {
	running(t)
	sh(t, `mkdir -p /srv/nfs/dir /mnt/nfs && echo of-the-kernel >/srv/nfs/dir/file
		echo '/srv/nfs *(ro,fsid=0,insecure,no_subtree_check)' >/etc/exports
		printf '[nfsd]\ngrace-time=10\nlease-time=10\n' >/etc/nfs.conf.d/test.conf
		systemctl start nfs-server`)
	t.Cleanup(func() { sh(t, "umount -l /mnt/nfs; systemctl stop nfs-server") })
	sh(t, "mount -t nfs4 -o ro 127.0.0.1:/ /mnt/nfs")
	read := "nfs-cat 'nfs://127.0.0.1/dir/file?version=4'"
	until(t, "the server to serve new clients", func() bool { _, err := try(read); return err == nil })
	for _, tt := range []struct {
		labels, command string
		want            bool
	}{
		{"", read, true},
		{"app=nfs", read, true},
		{"app=other", read, false},
		{"app=nfs", read, true},
		{"app=other", "cat /mnt/nfs/dir/file", true},
	} {
		command := tt.command
		if tt.labels != "" {
			command = "thole run -l " + tt.labels + " -- " + command
		}
		out, err := try(command)
		if got := err == nil && strings.Contains(out, "of-the-kernel"); got != tt.want {
			t.Errorf("%s: %v: %q, want the file: %t", command, err, out, tt.want)
		}
	}
	if connects(t, "app=other", "127.0.0.1:2049") { // the NFS client does not say why it failed
		t.Error("app=other connects to the NFS server")
	}
}
