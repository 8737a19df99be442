package keystore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"sync"

	"example.com/keyring/internal/nks"
)

// arrivals tells files that are still being copied into the directory from bad ones. The zero value is ready to use.
type arrivals struct {
	mu   sync.Mutex // guards below
	were map[string]bool
	cut  map[string][sha256.Size]byte // of files that looked cut short, when they were read last
}

// look takes in the names in the directory. What was there at the first look is not being copied.
func (a *arrivals) look(there map[string]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.were == nil {
		a.were = there
		return
	}
	for name := range a.were {
		if !there[name] {
			delete(a.were, name)
		}
	}
}

// mayGrow reports whether a file that is no key file may become one: it has come since the first look, looks like the
// beginning of one, and has not been seen with this content before.
func (a *arrivals) mayGrow(name string, b []byte) bool {
	if len(b) > 0 && (b[0] != '{' || bytes.HasSuffix(b, []byte("}\n"))) {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	sum := sha256.Sum256(b)
	if last, seen := a.cut[name]; a.were[name] || seen && last == sum {
		return false
	}
	if a.cut == nil {
		a.cut = map[string][sha256.Size]byte{}
	}
	a.cut[name] = sum
	return true
}

// errArriving says that a file may not be there to its end yet.
var errArriving = errors.New("it looks cut short: if it does so at the next look, it is set aside")

// isArriving reports whether a bad file may be on its way: it is left until the next look.
func (s *Store) isArriving(name string) bool {
	b, err := s.dir.Read(name, nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	return err == nil && s.arrivals.mayGrow(name, b)
}
