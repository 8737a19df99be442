package peer_test

import (
	"context"
	"testing"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
)

// TestUnprovenOrphansAreToldApart on both ends: a leader adopts the others by itself.
func TestUnprovenOrphansAreToldApart(t *testing.T) {
	other := orphanKey
	other.ID = meta.KeyID(id(2))
	h := peer.Handlers{Self: "b", Hello: func(string, peer.HelloRequest) (*peer.Hello, error) {
		return &peer.Hello{Build: 1, Keystore: meta.KeystoreID(id(9)), Orphans: []meta.NewKey{orphanKey}, Unproven: []meta.NewKey{other}}, nil
	}}
	c := peer.Calls{Self: "a", Send: func(ctx context.Context, _ string, request []byte) ([]byte, error) {
		answer, err := h.Answer(ctx, "a", request)
		if err == nil {
			golden(t, 3, "answer-hello-unproven", answer)
		}
		return answer, err
	}}
	got, err := c.HelloWaiting(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Orphans) != 1 || got.Orphans[0].ID != orphanKey.ID || len(got.Unproven) != 1 || got.Unproven[0].ID != other.ID {
		t.Errorf("%+v", got)
	}
	if _, err := (peer.Response{Hello: &peer.HelloAnswer{Build: 1, Keystore: id(9), Orphans: []peer.Orphan{unproven(id(2))}}}).EncodeFor(peer.Request{Hello: &peer.HelloRequest{}}); err == nil {
		t.Error("a server of version 1 is told of one")
	}
}
