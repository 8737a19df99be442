package peer

import (
	"context"
	"crypto/x509"
	"time"
)

// What fields may hold.
const (
	MaxText       = maxText
	MaxPublic     = maxPublic
	PublicKeySize = publicKeySize
	EncSize       = encSize
	TagSize       = tagSize
)

// FrameEnds returns where requests end in a stream, and the error at which it stops being one.
func FrameEnds(stream []byte) (ends []int, err error) {
	s := scanner{next: atType}
	for i := range stream {
		if n, err := s.scan(stream[i : i+1]); n == 0 || err != nil {
			return ends, err
		}
		if s.depth == 0 && s.skip+s.need == 0 && (s.next == atType || s.over()) {
			ends = append(ends, i+1)
		}
	}
	return ends, nil
}

// Turns is turns for tests.
type Turns struct{ *turns[string] }

// NewTurns gives each most turns at a time.
func NewTurns(most int) Turns { return Turns{newTurns[string](most)} }

// Take takes one.
func (t Turns) Take(ctx context.Context, id string) (done func(), ok bool) { return t.take(ctx, id) }

// Known is how many have a turn or wait for one.
func (t Turns) Known() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.of)
}

// Expire is what the timer of a connection calls.
func Expire(c *Conn) { c.expire() }

// EndWith has a connection end with chains of the other side.
func EndWith(c *Conn, chains [][]*x509.Certificate) { c.endWith(chains) }

// TimerOf is what waits for the end of a connection, or nil.
func TimerOf(c *Conn) *time.Timer {
	c.life.Lock()
	defer c.life.Unlock()
	return c.timer
}
