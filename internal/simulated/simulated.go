// Package simulated is what tests put in place of a server's disk and of its wall clock. It travels in the context of
// keyring.Open and keyring.Restore, so that the configuration of a host has no field for it. Only tests set anything:
// without that, those functions use the directory of their configuration, and time.Now.
package simulated

import (
	"context"
	"time"

	"example.com/keyring/internal/durable"
)

type diskKey struct{}

// WithDisk has keyring.Open and keyring.Restore use a simulated directory in place of Dir. Dir must still have a name.
func WithDisk(ctx context.Context, fsys durable.FS) context.Context {
	return context.WithValue(ctx, diskKey{}, fsys)
}

// Disk returns the simulated directory, or nil.
func Disk(ctx context.Context) durable.FS {
	fsys, _ := ctx.Value(diskKey{}).(durable.FS)
	return fsys
}

// OpenDir opens the simulated directory, if there is one, else the directory at path.
func OpenDir(ctx context.Context, path string) (durable.FS, error) {
	if fsys := Disk(ctx); fsys != nil {
		return fsys, nil
	}
	return durable.OpenDir(path)
}

type clockKey struct{}

// WithClock gives a keyring its wall clock.
func WithClock(ctx context.Context, now func() time.Time) context.Context {
	return context.WithValue(ctx, clockKey{}, now)
}

// Clock returns the wall clock: time.Now, if no test has set another.
func Clock(ctx context.Context) func() time.Time {
	if now, ok := ctx.Value(clockKey{}).(func() time.Time); ok {
		return now
	}
	return time.Now
}
