package keyring

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/bounded"
	"github.com/hashicorp/raft"
)

// Status is Keyring.Status of the leader, wherever it is called: some of it only the leader knows. Its
// Keys and NoBackup are as this server has them. As long as ctx lets it, it waits for a leader that
// answers. What any one server knows is Keyring().Status there.
func (n *Node) Status(ctx context.Context) (s Status, err error) {
	err = n.whenLed(ctx, func() error {
		if err := n.keys.mayLead(); !errors.Is(err, ErrNotLeader) {
			if err == nil {
				s, err = n.keys.Status(ctx)
			}
			return err
		}
		b, err := n.forward(ctx, callTimeout, pathStatus, nil, nil)
		if err != nil {
			return err
		}
		if s, err = unpackStatus(b); err != nil {
			return err
		}
		v := n.keys.view()
		s.Keys, s.NoBackup = publicKeys(v.ring), n.keys.statusOf(v).NoBackup
		return nil
	})
	return s, err
}

// maxStatus bounds another server's Status, in bytes of JSON. Ten thousand missing keys, with a problem
// for each, have 3 MiB, which shrink to a tenth on the way.
const maxStatus = 32 << 20

// statusAnswer is a Status on its way, but for Keys and NoBackup, which whoever asks has itself. No list is longer
// than this: a message has room for no more IDs.
type statusAnswer struct {
	statusFields `bound:"elements=32768,bytes=1048576"`
}

type statusFields struct {
	ID           raft.ServerID   `json:"id"`
	Leader       raft.ServerID   `json:"leader"`
	Servers      []raft.Server   `json:"servers"`
	Ready        bool            `json:"ready"`
	CaughtUp     bool            `json:"caughtUp"`
	LastContact  time.Time       `json:"lastContact"`
	Active       KeyID           `json:"active"`
	Missing      []KeyID         `json:"missing"`
	Orphans      []KeyID         `json:"orphans"`
	SetAside     []string        `json:"setAside"`
	KEKs         []KEKStatus     `json:"keks"`
	OnOldKEKs    int             `json:"onOldKEKs"`
	NextRotation time.Time       `json:"nextRotation"`
	LastBackup   LastBackup      `json:"lastBackup"`
	BackupSigner BackupSigner    `json:"backupSigner"`
	Rekeying     []RekeyProgress `json:"rekeying"`
	Problems     []Problem       `json:"problems"`
}

func (f statusFields) status() Status {
	return Status{
		ID: f.ID, Leader: f.Leader, Servers: f.Servers, Ready: f.Ready, CaughtUp: f.CaughtUp, LastContact: f.LastContact,
		Active: f.Active, Missing: f.Missing, Orphans: f.Orphans, SetAside: f.SetAside, KEKs: f.KEKs, OnOldKEKs: f.OnOldKEKs,
		NextRotation: f.NextRotation, LastBackup: f.LastBackup, BackupSigner: f.BackupSigner, Rekeying: f.Rekeying,
		Problems: f.Problems,
	}
}

var statusType = bounded.For[statusAnswer](maxStatus)

// serveStatus is the leader's Status for another server, without what that one has itself.
func (n *Node) serveStatus() ([]byte, error) {
	if err := n.keys.mayLead(); err != nil {
		return nil, err
	}
	s := n.keys.statusOf(n.keys.view())
	s.NoBackup = nil
	return packStatus(s)
}

func packStatus(s Status) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := json.NewEncoder(z).Encode(s); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func unpackStatus(b []byte) (Status, error) {
	all, err := bounded.Gunzip(b, maxStatus)
	if err != nil {
		return Status{}, fmt.Errorf("status: the leader's answer: %w", err)
	}
	a, err := statusType.DecodeKnown(all) // a newer leader may know more
	if err != nil {
		return Status{}, fmt.Errorf("status: the leader's answer: %w", err)
	}
	return a.status(), nil
}
