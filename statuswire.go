package keyring

// Status as it goes to another server.

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"time"

	"example.com/keyring/internal/bounded"
	"github.com/hashicorp/raft"
)

// EncodeStatus returns the leader's Status in bytes, for DecodeStatus on the server that has asked for it. Keys and
// NoBackup are not in it. Leader only.
func (k *Keyring) EncodeStatus() ([]byte, error) {
	if err := k.mayLead(); err != nil {
		return nil, err
	}
	s := k.statusOf(k.caughtUp.view())
	s.NoBackup = nil
	return packStatus(s)
}

// DecodeStatus returns the leader's Status from what its EncodeStatus has returned, of an older or newer build too.
// Keys and NoBackup are as this server has them. The bytes may come from a server that lies.
func (k *Keyring) DecodeStatus(b []byte) (Status, error) {
	if err := k.gate.Err(); err != nil {
		return Status{}, err
	}
	s, err := unpackStatus(b)
	if err != nil {
		return Status{}, fmt.Errorf("status: the leader's answer: %w", err)
	}
	v := k.caughtUp.view()
	s.Keys, s.NoBackup = keysOf(v.ring), k.statusOf(v).NoBackup
	return s, nil
}

// maxStatus bounds another server's Status, in bytes of JSON. Ten thousand missing keys, with a problem
// for each, have 3 MiB, which shrink to a tenth on the way.
const maxStatus = 32 << 20

// statusAnswer is a Status on its way, but for Keys and NoBackup, which the server that asks has itself. No list is longer
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
		return Status{}, err
	}
	a, err := statusType.DecodeKnown(all) // a newer leader may know more
	if err != nil {
		return Status{}, err
	}
	return a.status(), nil
}
