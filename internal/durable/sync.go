//go:build !darwin

package durable

import (
	"cmp"
	"os"

	"golang.org/x/sys/unix"
)

// syncOnce is fsync, called once whatever comes of it.
func syncOnce(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = c.Control(func(fd uintptr) { failed = unix.Fsync(int(fd)) })
	if err = cmp.Or(err, failed); err != nil {
		return &os.PathError{Op: "sync", Path: f.Name(), Err: err}
	}
	return nil
}
