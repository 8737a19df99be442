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

// Limits is limits for tests.
type Limits struct{ *limits[string] }

// NewLimits gives each key most places at a time.
func NewLimits(most int) Limits { return Limits{newLimits[string](most)} }

// Acquire waits for a place.
func (l Limits) Acquire(ctx context.Context, key string) (release func(), ok bool) {
	return l.acquire(ctx, key)
}

// Known is how many keys have a place or wait for one.
func (l Limits) Known() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.limits.limits)
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
