package kek

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"example.com/keyring/internal/nks"
)

// timeout is how long one call of a KEK may take.
const timeout = 10 * time.Second

// How often a KEK is probed: one that works now and then, so that it is known to be gone before it is needed; one that does
// not after a second, then after twice the time, with jitter. All its key files wait for that one probe.
const (
	probeEvery    = 10 * time.Minute
	firstRetry    = time.Second
	maxProbeRetry = 30 * time.Second
)

// State is how a KEK does.
type State string

// The states. A KEK that is down is in one of the middle three.
const (
	Works        State = "works"
	Unavailable  State = "does not answer"
	Throttled    State = "throttled"      // its errors match ErrThrottled
	Refuses      State = "refuses"        // its errors match ErrRefused
	Unconfigured State = "not configured" // files name it, and it is not in the set
	Wrong        State = "another KEK"    // it says that it has not wrapped what a file has for it
)

// stateOf is the state of a KEK whose calls fail with that error.
func stateOf(err error) State {
	switch {
	case err == nil:
		return Works
	case errors.Is(err, errOpen):
		return Wrong
	case errors.Is(err, ErrThrottled):
		return Throttled
	case errors.Is(err, ErrRefused):
		return Refuses
	}
	return Unavailable
}

// health is what is known of how a KEK answers. The zero value is a KEK that has not been asked.
type health struct {
	mu      sync.Mutex // guards below; no KEK is called under it
	cause   error      // why it counts as down, or nil
	worked  time.Time  // when a call of it has last succeeded
	tries   int        // checks in a row that have failed
	next    time.Time  // it is not probed before
	probing chan struct{}
	sample  sample
	version string // of its key, by what it has wrapped last; empty if it tells none
	warning string // about its file, as it was when somebody last looked
}

// sample is what a file has for a KEK, for the probe of an old one, which may not wrap any more.
type sample struct {
	wrapped, aad []byte
	opened       bool // by that KEK
}

// down is why the KEK counts as down, or nil.
func (h *health) down() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cause
}

// checked notes what came of a call that shows whether the KEK can do its work: an error takes it down at once.
// A call that was given up, because its context has ended, says nothing about the KEK.
func (h *health) checked(ctx context.Context, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	switch {
	case err == nil:
		h.cause, h.worked, h.tries = nil, now, 0
		h.next = now.Add(jittered(probeEvery))
	case ctx.Err() == nil:
		h.downLocked(err)
	}
}

// failed notes that a call other than a check has failed in a way that takes the KEK down. Many do at the same time, which
// must not put off the next check by as many steps.
func (h *health) failed(ctx context.Context, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case ctx.Err() != nil:
	case h.cause != nil:
		h.cause = err
	default:
		h.downLocked(err)
	}
}

// downLocked takes the KEK down until a check succeeds: the more in a row have failed, the later the next.
func (h *health) downLocked(err error) {
	h.cause = err
	h.next = time.Now().Add(jittered(min(maxProbeRetry, firstRetry<<min(h.tries, 10))))
	h.tries++
}

// jittered is between a half and all of d, so that servers do not ask together.
func jittered(d time.Duration) time.Duration { return d - rand.N(d/2) }

// answered notes that the KEK has answered for a file. That does not bring back one that is down: only a check has
// it both wrap and unwrap.
func (h *health) answered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.worked = time.Now()
}

// wait is how long the KEK need not be probed; zero if it is to be probed now.
func (h *health) wait() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(0, time.Until(h.next))
}

// show keeps what a file has for an old KEK as its sample, unless there is one that it has opened. Of several that it has not,
// any may be the one: one of them may be bad.
func (k *member) show(s sample) {
	if _, ok := k.KEK.(local); ok || !k.old {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.sample.opened && (s.opened || k.sample.wrapped == nil || rand.N(2) == 0) {
		k.sample = s
	}
}

// suspect is called when a KEK has failed for a file, in a call that began at that time. That may be because of
// the file. So the KEK is probed, once for all files that fail at the same time, unless it has worked since, or the failure
// tells by itself that it is down.
func (k *member) suspect(ctx context.Context, began time.Time, err error) {
	if ctx.Err() != nil {
		return
	}
	if k.neverWaits() || stateOf(err) == Throttled || time.Since(began) >= timeout {
		k.failed(ctx, err)
		return
	}
	k.askOnce(ctx, began)
}

// askOnce probes the KEK, or waits for the probe that is under way, if the KEK has neither gone down nor worked since.
func (k *member) askOnce(ctx context.Context, since time.Time) {
	for {
		k.mu.Lock()
		under := k.probing
		known := k.cause != nil || k.worked.After(since)
		if !known && under == nil {
			k.probing = make(chan struct{})
			k.mu.Unlock()
			k.check(ctx)
			return
		}
		k.mu.Unlock()
		if known {
			return
		}
		select {
		case <-under:
		case <-ctx.Done():
			return
		}
	}
}

// check probes a KEK whose probing the caller has set, and notes what came of it.
func (k *member) check(ctx context.Context) (err error) {
	err = k.probe(ctx)
	failed := err
	if errors.Is(err, ErrWrapOnly) {
		failed = nil
	}
	k.checked(ctx, failed)
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.probing)
	k.probing = nil
	return err
}

// begin reports whether the caller is to probe the KEK: nobody else does, and it is due.
func (k *member) begin() bool {
	if k.wait() > 0 {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.probing != nil {
		return false
	}
	k.probing = make(chan struct{})
	return true
}

// What a KEK is asked to wrap and unwrap in order to see whether it does.
const probe, probeAAD = "probe", "keyring v1 probe"

// probe has the KEK show whether it does its work. The error matches ErrWrapOnly if it wraps, and never unwraps.
func (k *member) probe(ctx context.Context) error {
	_, isAge := k.KEK.(*ageKEK)
	switch {
	case k.neverWaits():
		return nil
	case k.old && !isAge:
		return k.probeOld(ctx)
	}
	wrapped, err := k.wrap(ctx, nks.FileVersion, []byte(probe), []byte(probeAAD))
	if err == nil && !isAge { // to unwrap, somebody may have to touch a token
		_, err = k.unwrap(ctx, wrapped, []byte(probeAAD))
	}
	return err
}

// probeOld has an old KEK, which may not wrap any more, unwrap something of a file. A KEK may know by itself what it has not
// wrapped, so nothing else shows that it is there. If there is nothing, or nothing that it has opened before, wrapping
// shows it too, and so does a refusal to wrap.
func (k *member) probeOld(ctx context.Context) error {
	k.mu.Lock()
	s := k.sample
	k.mu.Unlock()
	var failed error
	if s.wrapped != nil {
		b, err := k.unwrap(ctx, s.wrapped, s.aad)
		clear(b)
		switch {
		case err == nil, errors.Is(err, ErrWrapOnly):
			return nil
		case errors.Is(err, errOpen):
			if s.opened {
				return nil // it has another key by now, and answers
			}
		case s.opened:
			return err
		default:
			failed = err
		}
	}
	wrapped, err := k.wrap(ctx, nks.FileVersion, []byte(probe), []byte(probeAAD))
	if errors.Is(err, ErrRefused) && failed == nil {
		return nil
	}
	if err == nil {
		_, err = k.unwrap(ctx, wrapped, []byte(probeAAD))
	}
	switch {
	case err != nil && failed != nil:
		return failed
	case errors.Is(err, errOpen), errors.Is(err, ErrWrapOnly):
		return nil // it answers
	}
	return err
}

// withCause adds to an error why the context has ended, if it has.
func withCause(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return fmt.Errorf("%w: %w", context.Cause(ctx), err)
}
