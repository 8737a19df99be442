package peer_test

import (
	"bytes"
	"testing"

	"example.com/keyring/internal/bounded/boundedtest"
	"example.com/keyring/internal/peer"
)

// What decoding may allocate: a part for all, and so much for each byte of the message. The canonical
// form, which is compared, is among it.
const (
	decodeBase = 64 << 10
	decodeEach = 16
)

// fuzzRequest tries what begins as a request of the kind. What decodes encodes back to the same bytes.
func fuzzRequest(f *testing.F, kind string) {
	for name, r := range goldenRequests {
		if name == kind {
			f.Add(encoded(f, r))
		}
	}
	f.Add([]byte(`{"version":1,"` + kind + `":{}}`))
	f.Add([]byte(`{"version":1,"` + kind + `":{},"` + kind + `":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r peer.Request
		var err error
		boundedtest.Memory(t, len(b), decodeBase, decodeEach, func() { r, err = peer.DecodeRequest(b) })
		if err == nil && !bytes.Equal(encoded(t, r), b) {
			t.Errorf("request %q encodes as %q", b, encoded(t, r))
		}
	})
}

// fuzzAnswer tries what an asker reads who expects an A.
func fuzzAnswer[A peer.Answer](f *testing.F) {
	for _, r := range goldenAnswers {
		f.Add(encoded(f, r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		boundedtest.Memory(t, len(b), decodeBase, decodeEach, func() { peer.DecodeAnswer[A](b) })
		if r, err := answer(b); err == nil && !bytes.Equal(encoded(t, r), b) {
			t.Errorf("answer %q encodes as %q", b, encoded(t, r))
		}
	})
}

func FuzzHelloRequest(f *testing.F)   { fuzzRequest(f, "hello") }
func FuzzFetchRequest(f *testing.F)   { fuzzRequest(f, "fetch") }
func FuzzHoldRequest(f *testing.F)    { fuzzRequest(f, "hold") }
func FuzzAskRequest(f *testing.F)     { fuzzRequest(f, "ask") }
func FuzzOfferRequest(f *testing.F)   { fuzzRequest(f, "offer") }
func FuzzRemovedRequest(f *testing.F) { fuzzRequest(f, "removed") }
func FuzzStateRequest(f *testing.F)   { fuzzRequest(f, "state") }
func FuzzLeaveRequest(f *testing.F)   { fuzzRequest(f, "leave") }

func FuzzHelloAnswer(f *testing.F)   { fuzzAnswer[peer.HelloAnswer](f) }
func FuzzFetchAnswer(f *testing.F)   { fuzzAnswer[peer.FetchAnswer](f) }
func FuzzHoldAnswer(f *testing.F)    { fuzzAnswer[peer.HoldAnswer](f) }
func FuzzAskAnswer(f *testing.F)     { fuzzAnswer[peer.AskAnswer](f) }
func FuzzRemovedAnswer(f *testing.F) { fuzzAnswer[peer.RemovedAnswer](f) }
func FuzzStateAnswer(f *testing.F)   { fuzzAnswer[peer.StateAnswer](f) }
func FuzzLeaveAnswer(f *testing.F)   { fuzzAnswer[peer.LeaveAnswer](f) }
