// Command kube is every program of a small Kubernetes in one file, chosen by the first argument. They share nearly
// all of their code, so that together they are a third of the size and of the build time of seven programs.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	_ "time/tzdata" // time zones of CronJobs

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

const usage = `usage: kube PROGRAM ARGUMENTS...
  etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl
  pki DIR NAME-OR-ADDRESS...   writes a CA and the certificates and keys of a control plane
  ports COUNT                  prints free ports of 127.0.0.1`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	name := os.Args[1]
	// Each program reads os.Args for itself, and finds in it what it would find under its own name.
	os.Args = append([]string{name}, os.Args[2:]...)
	switch name {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		run(apiserver.NewAPIServerCommand())
	case "kube-controller-manager":
		run(controllermanager.NewControllerManagerCommand())
	case "kube-scheduler":
		run(scheduler.NewSchedulerCommand())
	case "kubelet":
		run(kubelet.NewKubeletCommand(context.Background()))
	case "kube-proxy":
		run(proxy.NewProxyCommand())
	case "kubectl":
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			util.CheckErr(err)
		}
	case "pki":
		finish(pki(os.Args[1:]))
	case "ports":
		count, err := strconv.Atoi(strings.Join(os.Args[1:], " "))
		if err == nil {
			err = ports(count)
		}
		finish(err)
	default:
		fmt.Fprintf(os.Stderr, "kube: no program %q here\n%s\n", name, usage)
		os.Exit(2)
	}
}

func finish(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "kube %s: %v\n", os.Args[0], err)
		os.Exit(1)
	}
}

func run(command *cobra.Command) {
	os.Exit(cli.Run(command))
}
