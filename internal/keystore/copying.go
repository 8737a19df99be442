package keystore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"maps"
	"sync"

	"example.com/keyring/internal/nks"
)

// copying tells files that are still being copied into the directory from bad ones. The zero value is ready to use.
type copying struct {
	mu    sync.Mutex                   // guards below
	old   map[string]bool              // names that were there at the first look, and have been ever since
	short map[string][sha256.Size]byte // of files that looked cut short, when they were read last
}

// look takes in the names in the directory. What was there at the first look is not being copied.
func (c *copying) look(there map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.old == nil {
		c.old = there
		return
	}
	maps.DeleteFunc(c.old, func(name string, _ bool) bool { return !there[name] })
	maps.DeleteFunc(c.short, func(name string, _ [sha256.Size]byte) bool { return !there[name] })
}

// mayGrow reports whether a file that is no key file may become one: it has come since the first look, looks like the
// beginning of one, and has not been seen with this content before.
func (c *copying) mayGrow(name string, b []byte) bool {
	if len(b) > 0 && (b[0] != '{' || bytes.HasSuffix(b, []byte("}\n"))) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := sha256.Sum256(b)
	if last, seen := c.short[name]; c.old[name] || seen && last == sum {
		return false
	}
	if c.short == nil {
		c.short = map[string][sha256.Size]byte{}
	}
	c.short[name] = sum
	return true
}

// errIncomplete says that a file may still be being copied.
var errIncomplete = errors.New("it seems to be cut short: if it still is at the next look, it is set aside")

// mayBeIncomplete reports whether a bad file may still be being copied: it is left until the next look.
func (s *Store) mayBeIncomplete(name string) bool {
	b, err := s.dir.Read(name, nks.MaxFile)
	defer clear(b) // an inline KEK is in it
	return err == nil && s.copying.mayGrow(name, b)
}
