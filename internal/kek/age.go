package kek

import (
	"bytes"
	"context"
	"crypto/fips140"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"filippo.io/age"
)

// Age returns the KEK that wraps keys to age recipients (c2sp.org/age). Without identities it never unwraps.
// Its ID is derived from the names of the recipients, in any order. It wraps something to them once: age does not
// mix all kinds of recipients, and one may need a plugin that is not installed. It waits at most 10 seconds for that.
func Age(to []age.Recipient, with ...age.Identity) (KEK, error) {
	if fips140.Enforced() {
		return nil, errors.New("KEK: age is not allowed in FIPS 140-only mode")
	}
	if len(to) == 0 {
		return nil, errors.New("KEK: there are no age recipients")
	}
	var names []string
	for i, r := range to {
		named, ok := r.(fmt.Stringer)
		if _, scrypt := r.(*age.ScryptRecipient); scrypt || !ok {
			return nil, fmt.Errorf("KEK: age recipient %d is a %T: it has no name, or is a passphrase", i, r)
		}
		names = append(names, named.String())
	}
	slices.Sort(names)
	h := sha256.New()
	for _, name := range slices.Compact(names) {
		fmt.Fprintln(h, name)
	}
	k := &ageKEK{"age:" + hex.EncodeToString(h.Sum(nil)[:8]), slices.Clone(to), slices.Clone(with)}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if _, err := k.Wrap(ctx, []byte(probe), []byte(probeAAD)); err != nil {
		return nil, fmt.Errorf("can't wrap to these age recipients: %w", err)
	}
	return k, nil
}

type ageKEK struct {
	id   string
	to   []age.Recipient
	with []age.Identity
}

func (k *ageKEK) ID() string { return k.id }

func (k *ageKEK) unwraps() bool { return len(k.with) > 0 }

// Format keeps the identities out of everything that prints.
func (k *ageKEK) Format(s fmt.State, _ rune) { io.WriteString(s, "KEK "+k.id) }

// Wrap ends with ctx: a recipient's plugin may hang, which age gives no way to end. What it has of the plaintext then is
// overwritten when the plugin ends.
func (k *ageKEK) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	type result struct {
		wrapped []byte
		err     error
	}
	done, own, aad := make(chan result, 1), bytes.Clone(plaintext), bytes.Clone(aad)
	go func() {
		defer clear(own)
		b, err := k.encrypt(own, aad)
		done <- result{b, err}
	}()
	select {
	case r := <-done:
		return r.wrapped, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("age has not ended: %w", context.Cause(ctx))
	}
}

// encrypt fails only for what is wrong with the recipients, so each error is a refusal.
func (k *ageKEK) encrypt(plaintext, aad []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, k.to...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	bound := boundTo(aad)
	for _, part := range [][]byte{bound[:], plaintext} {
		if _, err := w.Write(part); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func (k *ageKEK) Unwrap(_ context.Context, wrapped, aad []byte) ([]byte, error) {
	if len(k.with) == 0 {
		return nil, ErrWrapOnly
	}
	r, err := age.Decrypt(bytes.NewReader(wrapped), k.with...)
	if err != nil {
		return nil, errOpen
	}
	return readBound(r, len(wrapped), aad)
}

// readBound reads what Wrap has written, which is shorter than size, and returns the plaintext if it was bound to aad. It reads
// into one buffer that never grows, for a copy would stay behind, and overwrites it. age keeps a copy in its reader.
func readBound(r io.Reader, size int, aad []byte) (plaintext []byte, err error) {
	b := make([]byte, size)
	defer clear(b)
	n := 0
	for err == nil && n < size {
		var more int
		more, err = r.Read(b[n:])
		n += more
	}
	bound := boundTo(aad)
	if err != io.EOF || n < len(bound) || subtle.ConstantTimeCompare(b[:len(bound)], bound[:]) != 1 {
		return nil, errOpen
	}
	return bytes.Clone(b[len(bound):n]), nil
}

// boundTo is what stands before the plaintext in an age file.
func boundTo(aad []byte) (b [1 + sha256.Size]byte) {
	sum := sha256.Sum256(aad)
	b[0] = 1
	copy(b[1:], sum[:])
	return b
}
