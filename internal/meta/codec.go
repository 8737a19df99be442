package meta

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// Version is the version of log entries and snapshots that this package writes and reads.
const Version = 1

// ErrMalformed is matched by errors about bytes that are no entry or snapshot of this Version.
var ErrMalformed = errors.New("malformed keyring metadata")

// Entry is what one raft log entry carries: commands that are applied in order, and
// either all or none of them.
type Entry struct {
	Version  int       `json:"version"`      // Encode sets it
	By       string    `json:"by,omitempty"` // who asked; empty if the keyring acts of its own accord
	Commands []Command `json:"commands"`
}

// Encode returns the log entry, or says what is wrong with it. Times must be in UTC.
func (e Entry) Encode() ([]byte, error) {
	e.Version = Version
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode keyring command: %w", err)
	}
	if _, err := DecodeEntry(b); err != nil {
		return nil, err
	}
	return b, nil
}

// DecodeEntry reads a log entry. An error matches ErrMalformed.
func DecodeEntry(b []byte) (Entry, error) {
	var e Entry
	if err := decode(b, &e, func() int { return e.Version }); err != nil {
		return Entry{}, err
	}
	if len(e.Commands) == 0 {
		return Entry{}, fmt.Errorf("%w: no command", ErrMalformed)
	}
	if len(e.By) > MaxActor || !utf8.ValidString(e.By) {
		return Entry{}, fmt.Errorf("%w: who asked is longer than %d bytes, or not UTF-8", ErrMalformed, MaxActor)
	}
	return e, nil
}

type snapshot struct {
	Version int `json:"version"`
	Ring
}

// Encode returns the snapshot of the ring. Equal rings have equal snapshots.
func (r *Ring) Encode() ([]byte, error) {
	b, err := json.Marshal(snapshot{Version, *r})
	if err != nil {
		return nil, fmt.Errorf("encode keyring snapshot: %w", err)
	}
	return b, nil
}

// Decode reads a snapshot and checks it. An error matches ErrMalformed.
func Decode(b []byte) (*Ring, error) {
	var s snapshot
	if err := decode(b, &s, func() int { return s.Version }); err != nil {
		return nil, err
	}
	if err := s.Ring.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	s.Ring.index()
	return &s.Ring, nil
}

// decode unmarshals b into v and accepts it only if v encodes to the same bytes. That one
// rule refuses unknown, repeated and misspelt members, trailing bytes and other spellings
// of the same value, so that no two servers can read one entry in two ways.
func decode(b []byte, v any, version func() int) error {
	err := json.Unmarshal(b, v)
	if got := version(); got != Version && (got != 0 || err == nil) { // it stands first, so it is known whatever follows
		return fmt.Errorf("%w: version %d, this build reads %d", ErrMalformed, got, Version)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	again, err := json.Marshal(v)
	if err != nil || !bytes.Equal(again, b) {
		return fmt.Errorf("%w: not in the canonical form, or with members this build does not know", ErrMalformed)
	}
	return nil
}

// What lists are made of checks itself while it is read, so that a long list of short
// forgeries is refused at the first of them and never grows to many times its size.

// UnmarshalJSON reads a command and validates it.
func (c *Command) UnmarshalJSON(b []byte) error {
	type plain Command
	if err := json.Unmarshal(b, (*plain)(c)); err != nil {
		return err
	}
	return c.validate()
}

// UnmarshalJSON reads a key. Ring.Check does the rest.
func (k *Key) UnmarshalJSON(b []byte) error {
	type plain Key
	if err := json.Unmarshal(b, (*plain)(k)); err != nil {
		return err
	}
	return errors.Join(nonzero("key ID", k.ID), nonzero("check value", k.Check))
}

// UnmarshalJSON reads a tombstone. Ring.Check does the rest.
func (t *Tombstone) UnmarshalJSON(b []byte) error {
	type plain Tombstone
	if err := json.Unmarshal(b, (*plain)(t)); err != nil {
		return err
	}
	return nonzero("key ID", t.ID)
}

// UnmarshalJSON reads a server.
func (s *Server) UnmarshalJSON(b []byte) error {
	type plain Server
	if err := json.Unmarshal(b, (*plain)(s)); err != nil {
		return err
	}
	return nonzero("keystore ID", s.Keystore)
}

// utc reports whether t has the one form that times have in entries: UTC, or zero.
func utc(t time.Time) bool { return t.IsZero() || t.Location() == time.UTC }
