package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/bounded"
	"github.com/hashicorp/raft"
)

const (
	rotateTime = 30 * time.Second // a key is to be active by then
	maxPublish = 30 * 24 * time.Hour
)

// rotateRequest asks for a new key.
type rotateRequest struct {
	Full        bool            `json:"full,omitempty"`
	Revoke      []keyring.KeyID `json:"revoke,omitempty" bound:"elements=1000"`
	Compromised bool            `json:"compromised,omitempty"`              // all other keys are revoked, and go
	Publish     string          `json:"publish,omitempty" bound:"bytes=64"` // how long the JWKS has the key before it signs: 5m
}

var rotateType = bounded.For[rotateRequest](maxBody)

// options is what is asked for, now. The error says what is wrong with it.
func (q rotateRequest) options(now time.Time) (keyring.RotateOptions, error) {
	o := keyring.RotateOptions{Full: q.Full, Revoke: q.Revoke, Compromised: q.Compromised}
	if q.Publish == "" {
		return o, nil
	}
	wait, err := time.ParseDuration(q.Publish)
	switch {
	case err != nil || wait <= 0 || wait > maxPublish:
		return o, fmt.Errorf("publish: %.40q is no duration from 1ns to %v, such as 5m", q.Publish, maxPublish)
	case q.Compromised:
		return o, errors.New("compromised can't be combined with publish: until then the stolen key would sign")
	}
	o.Publish = now.Add(wait)
	return o, nil
}

// rotate makes a new key.
func (h *Handler) rotate(r *http.Request) (any, error) {
	in, err := decode(r, rotateType)
	if err != nil {
		return nil, err
	}
	options, err := in.options(time.Now())
	if err != nil {
		return nil, badRequest{err}
	}
	if err := h.mayRotate(r.Context(), in.Revoke); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), rotateTime)
	defer cancel()
	key, err := h.server.Rotate(ctx, options)
	if err != nil && !errors.As(err, new(notBegun)) {
		// Also if somebody else leads now: a leader that is lost in the middle may have made the key, and
		// the next one would make another.
		err = unknown{fmt.Errorf("there may be a new key all the same: %w", err)}
	}
	if err != nil {
		return nil, err
	}
	return h.keyStatus(r.Context(), key), nil
}

// mayRotate says what is in the way of a rotation while it certainly has had no effect: before the server
// is asked.
func (h *Handler) mayRotate(ctx context.Context, revoke []keyring.KeyID) error {
	st, err := h.server.Keyring().Status(ctx)
	if err != nil {
		return err
	}
	if st.Leader == "" {
		return keyring.NotLeaderError{}
	}
	for _, id := range revoke {
		if !slices.ContainsFunc(st.Keys, func(k keyring.Key) bool { return k.ID == id }) {
			return fmt.Errorf("revoke: %w %s", keyring.ErrUnknownKey, id)
		}
	}
	return nil
}

// keyOfPath is the key that a request is about.
func keyOfPath(r *http.Request) (keyring.KeyID, error) {
	id, err := keyring.ParseKeyID(r.PathValue("id"))
	if err != nil {
		return id, badRequest{err}
	}
	return id, nil
}

// remove removes a key: when nothing is sealed under it any more, or by ?force at once and with all
// that is. It may be done twice, so it needs no unknown.
func (h *Handler) remove(r *http.Request) (any, error) {
	id, err := keyOfPath(r)
	if err != nil {
		return nil, err
	}
	force, err := flagOf(r, "force")
	if err != nil {
		return nil, err
	}
	now, err := flagOf(r, "now")
	if err != nil {
		return nil, err
	}
	o := keyring.RemoveOptions{Force: force, Now: now}
	if err := h.server.Remove(r.Context(), id, o); err != nil {
		// The keyring has no error to tell it by. Before the leader is asked, this server may not yet know that
		// there is another active key.
		if slices.ContainsFunc(h.server.Keyring().Keys(), func(k keyring.Key) bool { return k.ID == id && k.State == keyring.StateActive }) {
			err = conflict{err}
		}
		return nil, err
	}
	return keyAnswer{Removed: id.String()}, nil
}

// keyAnswer says what was done with a key.
type keyAnswer struct {
	Removed string `json:"removed,omitempty"`
	Adopted string `json:"adopted,omitempty"`
}

// adopt takes in the key of a file that the keyring does not know.
func (h *Handler) adopt(r *http.Request) (any, error) {
	id, err := keyOfPath(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), rotateTime)
	defer cancel()
	return keyAnswer{Adopted: id.String()}, h.server.Adopt(ctx, id)
}

// rewrapAnswer names the server whose key files are wrapped under its present KEKs alone.
type rewrapAnswer struct {
	Rewrapped raft.ServerID `json:"rewrapped"`
}

// rewrap has this server's key files wrapped under its present KEKs alone.
func (h *Handler) rewrap(r *http.Request) (any, error) {
	return rewrapAnswer{h.id}, h.server.Keyring().Rewrap(r.Context())
}
