package kektest

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Versioned is a KMS whose key has versions: it wraps with the newest.
type Versioned struct {
	*KMS

	mu     sync.Mutex // guards below
	newest byte
	oldest byte // older ones are destroyed
}

// NewVersioned is one with a version.
func NewVersioned(name string) *Versioned { return &Versioned{KMS: New(name), newest: 1, oldest: 1} }

// Rotate makes a new version.
func (k *Versioned) Rotate() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.newest++
}

// Destroy destroys all but the newest version.
func (k *Versioned) Destroy() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.oldest = k.newest
}

// Wrap puts the version before what the KMS wraps.
func (k *Versioned) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	k.mu.Lock()
	version := k.newest
	k.mu.Unlock()
	b, err := k.KMS.Wrap(ctx, plaintext, aad)
	return append([]byte{version}, b...), err
}

// Unwrap refuses what a version has wrapped that is destroyed.
func (k *Versioned) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	k.mu.Lock()
	oldest := k.oldest
	k.mu.Unlock()
	if len(wrapped) == 0 || wrapped[0] < oldest {
		return nil, errors.New("this version of the key was destroyed")
	}
	return k.KMS.Unwrap(ctx, wrapped[1:], aad)
}

// Version returns the version that has wrapped something.
func (k *Versioned) Version(wrapped []byte) string { return fmt.Sprintf("v%d", wrapped[0]) }
