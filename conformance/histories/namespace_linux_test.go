package histories

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNamespace has a socket made in a namespace, if there is one. The thread that goes there is thrown
// away with the goroutine that never unlocks it.
func inNamespace[C any](ns *os.File, socket func() (C, error)) (C, error) {
	if ns == nil {
		return socket()
	}
	type result struct {
		c   C
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		var r result
		if r.err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); r.err == nil {
			r.c, r.err = socket()
		}
		done <- r
	}()
	r := <-done
	return r.c, r.err
}
