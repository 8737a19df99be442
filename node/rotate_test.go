package node

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/peer"
)

// TestRotateAsksARefusingLeaderWithPauses, which end with the context: in a minute it asks about once a second.
func TestRotateAsksARefusingLeaderWithPauses(t *testing.T) {
	for _, code := range []peer.Code{peer.NotLeader, peer.NotReady} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			asked, began := 0, time.Now()
			ready := func() (bool, error) { return false, nil }
			_, _, err := untilTaken(ctx, ready, func() ([]byte, error) {
				if asked++; asked > 1000 {
					cancel()
				}
				return nil, fmt.Errorf("forward: %w", &peer.Refusal{Code: code})
			})
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != time.Minute {
				t.Errorf("%s: after %v: %v", code, took, err)
			}
			if asked < 60 || asked > 130 {
				t.Errorf("%s: it was asked %d times in a minute", code, asked)
			}
		})
	}
}

// TestRotateAsksOnceWhatMayHaveBegun, and again what was refused.
func TestRotateAsksOnceWhatMayHaveBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused, other := &peer.Refusal{Code: peer.NotReady}, errors.New("no answer")
		for name, tt := range map[string]struct {
			answers []error
			want    error
		}{
			"taken":                   {[]error{nil}, nil},
			"taken after refusals":    {[]error{refused, refused, nil}, nil},
			"no answer":               {[]error{other}, other},
			"refused, then no answer": {[]error{refused, other}, other},
		} {
			asked := 0
			leads, answer, err := untilTaken(t.Context(), func() (bool, error) { return false, nil }, func() ([]byte, error) {
				asked++
				return []byte("id"), tt.answers[asked-1]
			})
			if leads || asked != len(tt.answers) || !errors.Is(err, tt.want) || (err == nil) != (string(answer) == "id") {
				t.Errorf("%s: asked %d times: %q, %v", name, asked, answer, err)
			}
		}
		leads, _, err := untilTaken(t.Context(), func() (bool, error) { return true, nil }, nil)
		if !leads || err != nil {
			t.Errorf("on the leader: %v, %v", leads, err)
		}
	})
}
