package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/keyring"
)

// client encrypts all along, through whatever server is alive, and keeps what it gets.
type client struct {
	records []record
	failed  int             // calls
	pauses  []time.Duration // without a ciphertext
}

// record is a ciphertext and what it is to open to.
type record struct{ plaintext, aad, ciphertext []byte }

const (
	pace    = 2 * time.Millisecond   // of the client's calls
	notable = 500 * time.Millisecond // of a pause
)

// run works until ctx ends. A call waits for a leader, so it fails only with the server that
// was asked. Then the client has no ciphertext, and asks another.
func (cl *client) run(ctx context.Context, c *cluster) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	last := time.Now()
	for turn := 0; ; turn++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		n := len(cl.records)
		r := record{plaintext: fmt.Appendf(nil, "the plaintext of record %d", n), aad: fmt.Appendf(nil, "record %d", n)}
		live := c.live()
		if err := live[turn%len(live)].call(ctx, "Encrypt", Message{r.plaintext, r.aad}, &r.ciphertext); err != nil {
			cl.failed++
			continue
		}
		cl.records = append(cl.records, r)
		if pause := time.Since(last); pause > notable {
			c.say("client", "encrypts again after %v", pause.Round(time.Millisecond))
			cl.pauses = append(cl.pauses, pause)
		}
		last = time.Now()
	}
}

// summarize says how it went.
func (cl *client) summarize(c *cluster) {
	c.say("client", "has %d ciphertexts; %d calls failed and were retried", len(cl.records), cl.failed)
	sealed := map[keyring.KeyID]int{}
	for _, r := range cl.records {
		id, _ := keyring.CiphertextKeyID(r.ciphertext) // of what is no ciphertext, zero; check finds it
		sealed[id]++
	}
	for _, k := range slices.Backward(c.now().leader().Keys) {
		c.say("client", "has %3d under key %s, %s, which %s hold", sealed[k.ID], short(k.ID), k.State, join(k.Holders))
	}
	if n := len(cl.pauses); n > 0 {
		slices.Sort(cl.pauses)
		c.say("client", "paused %d times: median %v, longest %v", n,
			cl.pauses[n/2].Round(time.Millisecond), cl.pauses[n-1].Round(time.Millisecond))
	}
}

// check opens every ciphertext on every server, each with its own keys alone.
func (cl *client) check(ctx context.Context, c *cluster) error {
	var lost []error
	for _, p := range c.live() {
		open := 0
		var last error
		for _, r := range cl.records {
			var got []byte
			err := p.call(ctx, "Decrypt", Message{r.ciphertext, r.aad}, &got)
			switch {
			case err != nil:
				last = fmt.Errorf("%s: %w", r.aad, err)
			case !bytes.Equal(got, r.plaintext):
				last = fmt.Errorf("%s: %s decrypts it to something else", r.aad, p.id)
			default:
				open++
			}
		}
		c.say(p.id, "decrypts %d of %d", open, len(cl.records))
		if last != nil {
			lost = append(lost, last)
		}
	}
	return errors.Join(lost...)
}
