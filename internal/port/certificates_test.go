package port

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/peer"
)

// TestOwnCertificateIsHeldAgainstTheClockOfNow: a clock that was set back or ahead since the last look is told of at once.
func TestOwnCertificateIsHeldAgainstTheClockOfNow(t *testing.T) {
	own := peer.Ending{From: time.Unix(7200, 0), Until: time.Unix(1e9, 0)}
	for at, want := range map[time.Time]string{
		time.Unix(9000, 0): "", time.Unix(0, 0): "own certificate is valid from 1970-01-01 02:00:00 UTC to 2001-09-09 01:46:40 UTC, but by the clock here it is 1970-01-01 00:00:00 UTC",
		time.Unix(2e9, 0): "by the clock here it is 2033-05-18 03:33:20 UTC",
	} {
		found := outlook{own: own, clock: func() time.Time { return at }}
		switch _, err := found.now(); {
		case want == "" && err != nil:
			t.Errorf("%v: %v", at, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%v: %v, want %q", at, err, want)
		}
	}
}

// TestChangeOfCertificatesIsNoticed: another certificate, another end, another reason to refuse this server's.
func TestChangeOfCertificatesIsNoticed(t *testing.T) {
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	own, ca := Certificate{"s1", false, from, from.Add(time.Hour)}, Certificate{"s1", true, from, from.Add(time.Hour)}
	renewed, others := own, own
	renewed.NotAfter, others.Server = from.Add(2*time.Hour), "s2"
	looks := []outlook{
		{}, {all: []Certificate{own}}, {all: []Certificate{renewed}}, {all: []Certificate{ca}}, {all: []Certificate{own, ca}},
		{all: []Certificate{own, others}}, {err: errors.New("another CA")}, {err: errors.New("not for servers")},
	}
	for i, a := range looks {
		for j, b := range looks {
			b.err = again(b.err)
			if a.equal(&b) != (i == j) {
				t.Errorf("%+v and %+v: the same is %v", a, b, i != j)
			}
		}
	}
}

// again is another error that says the same.
func again(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w", err)
}
