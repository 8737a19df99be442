package kek

// How keys are derived from a passphrase: with which parameters, one at a time, and not for ever for files that do not open.

import (
	"cmp"
	"context"
	"crypto/cipher"
	"fmt"
	"math"
	"sync"
	"time"

	"example.com/keyring/internal/secret"
	"golang.org/x/crypto/argon2"
)

// Argon2id is the parameters of argon2id. The root's type of that name says what they are.
type Argon2id struct {
	Time    uint32
	Memory  uint32
	Threads uint8
}

// firstChoice and secondChoice are those that RFC 9106 recommends first and second.
var (
	firstChoice  = Argon2id{Time: 1, Memory: 2 << 20, Threads: 4}
	secondChoice = Argon2id{Time: 3, Memory: 64 << 10, Threads: 4}
)

// orDefault fills in what is zero.
func (a Argon2id) orDefault() Argon2id {
	return Argon2id{cmp.Or(a.Time, secondChoice.Time), cmp.Or(a.Memory, secondChoice.Memory), cmp.Or(a.Threads, secondChoice.Threads)}
}

// cost is what both a guess and a derivation cost: KiB times passes.
func (a Argon2id) cost() uint64 { return uint64(a.Time) * uint64(a.Memory) }

// maxCost bounds what may be configured: a derivation that takes longer than 10 seconds would be given up.
const maxCost = 4 << 20

// checkLeast is the lower bound of both what is configured and what a file may ask for.
func (a Argon2id) checkLeast() error {
	switch least := secondChoice.cost(); {
	case a.cost() < least:
		return fmt.Errorf("argon2id: %d passes over %d KiB: their product is less than %d", a.Time, a.Memory, least)
	case a.Threads < 1 || a.Threads > 16:
		return fmt.Errorf("argon2id: %d threads, not 1 to 16", a.Threads)
	case a.Memory < 8*uint32(a.Threads):
		return fmt.Errorf("argon2id: %d KiB of memory are less than 8 for each of %d threads", a.Memory, a.Threads)
	}
	return nil
}

// check bounds what may be configured.
func (a Argon2id) check() error {
	if a.cost() > maxCost {
		return fmt.Errorf("argon2id: %d passes over %d KiB: their product is more than %d", a.Time, a.Memory, maxCost)
	}
	return a.checkLeast()
}

// checkDemand bounds what a file may ask for: no less than is ever written, and no more than RFC 9106's first choice or what
// this server is configured to write.
func (a Argon2id) checkDemand(own Argon2id) error {
	if most := max(firstChoice.cost(), own.cost()); a.cost() > most {
		return fmt.Errorf("argon2id: it asks for %d passes over %d KiB: their product is more than %d", a.Time, a.Memory, most)
	}
	return a.checkLeast()
}

// derivation is how a key is derived from the passphrase. The form of the entry says how much.
type derivation struct {
	form byte
	Argon2id
	salt [16]byte
}

// derived is what comes of it.
type derived struct {
	aead       cipher.AEAD
	commitment []byte // empty in the first form
	wasted     uint64 // what it counts as wasted, while it has opened nothing
	nth        uint64 // of all that were derived
}

const (
	// maxWasted is what derivations may cost, as cost has it, after which nothing opened: some 20 with the default
	// parameters, and a few seconds at most. Then other salts wait until some of it has passed.
	maxWasted  = 4 << 20
	wastedFor  = time.Minute // until all of it has passed
	maxDerived = 1024        // that are remembered
)

// deriver derives keys from one passphrase, one at a time: each takes its memory. It remembers them. No lock is held
// meanwhile, and nobody waits after the end of his context: the derivation that he has begun goes on to its end,
// and is remembered.
//
// Somebody who can write files can have it derive for nothing. So what was wasted has a bound, and takes nothing
// from salts that are remembered or are its own.
type deriver struct {
	passphrase func() []byte // fmt looks into the fields of others' fields, not into a func
	argon2     func(passphrase, salt []byte, time, memory uint32, threads uint8, size uint32) []byte
	turn       chan struct{} // has one while a key is derived

	mu     sync.Mutex // guards below; nothing is derived under it
	keys   map[derivation]*derived
	count  uint64    // how many were derived
	wasted uint64    // of maxWasted, at
	at     time.Time // that time
}

func newDeriver(passphrase func() []byte) *deriver {
	return &deriver{passphrase: passphrase, argon2: argon2.IDKey, turn: make(chan struct{}, 1), keys: map[derivation]*derived{}}
}

// derive returns the key of a derivation, from memory if there is one. With must it is not refused for what was wasted.
func (v *deriver) derive(ctx context.Context, d derivation, must bool) (*derived, error) {
	if key := v.get(d); key != nil {
		return key, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	select {
	case v.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if key := v.get(d); key != nil { // it came meanwhile
		<-v.turn
		return key, nil
	}
	if !must && !v.spend(d.cost()) {
		<-v.turn
		return nil, fmt.Errorf("%w: argon2id: many salts opened nothing, so this one is tried later", errOpen)
	}
	done := make(chan *derived, 1)
	go func() { // ends by itself, within seconds
		key := v.run(d)
		if !must {
			key.wasted = d.cost()
		}
		v.keep(d, key)
		<-v.turn
		done <- key
	}()
	select {
	case key := <-done:
		return key, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// run derives a key.
func (v *deriver) run(d derivation) *derived {
	size := uint32(Size)
	if d.form == secondForm {
		size = 2 * Size
	}
	var b []byte
	secret.Do(func() { b = v.argon2(v.passphrase(), d.salt[:], d.Time, d.Memory, d.Threads, size) })
	defer clear(b[:Size])
	aead, err := newAEAD(b[:Size])
	if err != nil {
		panic("kek: " + err.Error()) // it has the size of a key
	}
	return &derived{aead: aead, commitment: b[Size:]}
}

// keep remembers a key. It forgets the oldest that has opened nothing, if there is no room.
func (v *deriver) keep(d derivation, key *derived) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.keys) >= maxDerived {
		var oldest derivation
		nth := uint64(math.MaxUint64)
		for other, k := range v.keys {
			if k.wasted > 0 && k.nth < nth {
				oldest, nth = other, k.nth
			}
		}
		delete(v.keys, oldest)
	}
	v.count++
	key.nth = v.count
	v.keys[d] = key
}

func (v *deriver) get(d derivation) *derived {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.keys[d]
}

// spend counts a derivation as wasted until it opens something, and reports whether it may begin.
func (v *deriver) spend(cost uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	passed := uint64(min(now.Sub(v.at), wastedFor)) * maxWasted / uint64(wastedFor)
	v.wasted, v.at = v.wasted-min(v.wasted, passed), now
	if v.wasted >= maxWasted {
		return false
	}
	v.wasted += cost
	return true
}

// opened notes that an entry has opened: that derivation was no waste.
func (v *deriver) opened(key *derived) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wasted -= min(v.wasted, key.wasted)
	key.wasted = 0
}
